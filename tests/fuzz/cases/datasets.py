"""Preparations, on small raw files: a data set that can be read, or a sentence; and the synthetic funnel."""

import contextlib
import io
from functools import cache, partial
from itertools import count
from pathlib import Path

import numpy as np

from tests.datasets.ali_ccp import raw as ali_ccp
from tests.datasets.taobao import raw as taobao
from tests.fuzz.cases.data import folder
from tests.fuzz.cases.drawn import integer, one_of
from tests.fuzz.cell import Case
from torchrec_mtl import datasets
from torchrec_mtl.__main__ import main
from torchrec_mtl.data import Schema, read_split

_NUMBER = count()


@cache
def _raw(name):
    files = {"ali_ccp": ali_ccp, "taobao": taobao}[name]
    lines = {} if name == "ali_ccp" else {"raw_sample": taobao.LINES["raw_sample"] * 12}
    return files.write(folder() / f"raw {name}", **lines)


def _new():
    return str(folder() / f"prepared {next(_NUMBER)}")


def _judge_prepared(given, directory):
    schema = Schema.load(directory)
    split = read_split(directory, "train")
    assert len(split) == schema.num_rows["train"] >= 1


def _funnel(rng):
    return {
        "base_rates": one_of(rng, (0.4, 0.1), (0.5, 0.3, 0.1)),
        "field_sizes": one_of(rng, (5, 4), (3, 9, 4, 6)),
        "num_pairs": 1,
        "list_size": one_of(rng, 0, 3),
        "signal": float(rng.random()),
        "interaction": float(rng.random()),
        "correlation": float(rng.random()),
        "zipf_exponent": float(rng.random() * 2),
        "seed": integer(rng, 0, 9),
    }


def _judge_funnel(given, funnel):
    rows = funnel.sample(20)
    conditional = funnel.conditional_probabilities(rows)
    assert conditional.shape == (20, len(given["base_rates"]))
    assert ((conditional >= 0) & (conditional <= 1)).all()


@cache
def small_funnel():
    return datasets.SyntheticFunnel(base_rates=(0.4, 0.1), field_sizes=(5, 4), num_pairs=1)


@cache
def _synthetic():
    rows = {"train": 50, "valid": 50, "test": 200}
    return datasets.prepare_synthetic(folder() / "synthetic", small_funnel(), rows)


def _judge_sample(given, rows):
    assert rows.height == given["num_rows"]
    assert not rows.null_count().to_numpy().any()


def _judge_oracle(given, aucs):
    assert np.isfinite(list(aucs.values())).all()


_RAW = {"bad_rows": "quarantine", "bad_rows_limit": 10, "sample": 1.0, "seed": 3}
CASES = {
    "SyntheticFunnel": Case(datasets.SyntheticFunnel, _funnel, _judge_funnel),
    "SyntheticFunnel.sample": Case(
        lambda num_rows, seed: small_funnel().sample(num_rows, seed),
        lambda rng: {"num_rows": integer(rng, 1, 9), "seed": integer(rng, 0, 9)},
        _judge_sample,
    ),
    "prepare_synthetic": Case(
        datasets.prepare_synthetic,
        lambda rng: {
            "directory": _new(),
            "funnel": small_funnel(),
            "num_rows": {split: integer(rng, 1, 9) for split in ("train", "valid", "test")},
        },
        _judge_prepared,
    ),
    "oracle_auc": Case(
        datasets.oracle_auc,
        lambda rng: {"directory": one_of(rng, _synthetic(), str(_synthetic())), "split": "test"},
        _judge_oracle,
    ),
    "prepare_ali_ccp": Case(
        datasets.prepare_ali_ccp,
        lambda rng: {
            "raw": str(_raw("ali_ccp")),
            "output": _new(),
            "protocol": one_of(rng, "aitm", "full"),
            "broken_funnel": one_of(rng, "drop", "keep", "refuse"),
            **_RAW,
        },
        _judge_prepared,
    ),
    "prepare_taobao": Case(
        datasets.prepare_taobao,
        lambda rng: {
            "raw": str(_raw("taobao")),
            "output": _new(),
            "history_length": integer(rng, 0, 3),
            "history_days": integer(rng, 1, 7),
            "purchase_days": integer(rng, 0, 2),
            "min_count": 1,
            **_RAW,
        },
        _judge_prepared,
    ),
    # reads two million lines where it is right: its own tests do so
    "prepare_complete_journey": Case(
        partial(datasets.prepare_complete_journey, "/dev/null/nowhere"),
        lambda rng: {"sample": 20.0},
        _judge_prepared,
        refused=True,
    ),
}


@cache
def trained_run() -> Path:
    """The folder of a run of one model, trained on a little synthetic data."""
    output = folder() / "trained"
    arguments = ["--dataset", str(_synthetic()), "--models", "shared_bottom", "--output", str(output), "--name", "run"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main(["train", *arguments, "training.batch_size=64"]) == 0
    return output / "run"
