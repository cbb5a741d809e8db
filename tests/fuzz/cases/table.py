"""Declared tables: a declaration that is accepted can be prepared, and what is prepared has the ids that it says."""

from functools import cache, partial
from itertools import count
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from tests.fuzz.cases.data import folder
from tests.fuzz.cases.drawn import integer, one_of
from tests.fuzz.cell import Case
from torchrec_mtl import TaskChain
from torchrec_mtl.data import Schema, table
from torchrec_mtl.data.table import infer

_NUMBER = count()
COUNTS = {
    "string": pl.DataFrame({"value": ["a", "b", "c"], "count": [9, 5, 1]}),
    "number": pl.DataFrame({"value": [-3.0, 0.5, 7.0], "count": [9, 5, 1]}),
}


def _id_field(rng):
    return {
        "name": "city",
        "column": one_of(rng, None, "town"),
        "separator": one_of(rng, None, "|"),
        "weights": None,
        "shares": one_of(rng, None, "other"),
        "embedding_dim": one_of(rng, None, 8),
        "pooling": one_of(rng, "sum", "mean"),
        "init_std": one_of(rng, None, 0.1),
    }


def _of_ids(kind, **own):
    def draw(rng):
        return {**_id_field(rng), **{name: drawn(rng) for name, drawn in own.items()}}

    return Case(kind, draw, partial(_judge_ids, kind))


def _judge_ids(kind, given, field):
    """Every value, of training rows or not, has an id of the table."""
    if kind is table.History:
        assert field.within_us is None or field.within_us > 0
        return
    values = {
        "key": pa.array(["a", "zzz", None]),
        "integer": pa.array([0, 0, 0]),
        "number": pa.array([-1e9, 1e9, None]),
        "time": pa.array([0, 10**15, None]),
    }[kind.role]
    fitted = field.fit(COUNTS["number" if kind.role == "number" else "string"])
    ids = field.encode(values, fitted)
    assert len(ids) == 3
    assert 0 <= ids.min() <= ids.max() < field.num_embeddings(fitted)


def _judge_dense(given, field):
    values = field.encode(pa.array([-1e9, 1e9, None]), field.fit(COUNTS["number"]))
    assert values.shape == (3, len(field.dense))
    assert np.isfinite(values).all()


def _judge_edges(given, split):
    assert split.edges[0] < split.edges[1]


def _judge_shares(given, split):
    assert 0 < split.valid + split.test < 1


def _judge_column(given, age):
    assert age.column == given["column"]


def _judge_delay(given, delay):
    assert 0 <= delay.wait_us < delay.window_us


@cache
def _rows() -> Path:
    file = folder() / "rows.csv"
    rows = [f"u{n % 7},{n % 5},2026-11-{1 + n % 20:02},{n % 2},{n % 4 == 1:d}" for n in range(200)]
    file.write_text("\n".join(["user,item,ts,click,buy", *rows]) + "\n")
    return file


def _table(rng):
    return {
        "name": "shop",
        "source": [str(_rows())],
        "tasks": TaskChain(["click", "buy"]),
        "fields": [table.Vocabulary("user"), table.Bins("item", 3)],
        "split": one_of(rng, table.ByHash("user", 0.3, 0.3), table.ByTime("2026-11-08", "2026-11-15")),
        "time": "ts",
        "time_unit": None,
        "group": one_of(rng, None, "user"),
        "keep": [],
        "format": one_of(rng, None, "csv"),
        "delays": [],
        "as_of": None,
    }


def _judge_table(given, declared):
    assert {"click", "buy", *(field.name for field in given["fields"])} <= set(declared.columns)


def _prepare(rng):
    declared = table.Table(**_table(rng))
    output = str(folder() / f"table {next(_NUMBER)}")
    return {"table": declared, "output": output, "bad_rows": "strict", "bad_rows_limit": integer(rng, 1, 9)}


def _judge_prepared(given, directory):
    assert sum(Schema.load(directory).num_rows.values()) == 200


def _judge_inferred(given, text):
    compile(text, "inferred", "exec")


TOP = {
    "AgeInDays": Case(table.AgeInDays, lambda rng: {"column": "created"}, _judge_column),
    "Vocabulary": _of_ids(
        table.Vocabulary,
        min_count=lambda rng: integer(rng, 1, 6),
        max_size=lambda rng: one_of(rng, None, 2),
        order=lambda rng: one_of(rng, "count", "value"),
        unknown=lambda rng: one_of(rng, "own", "missing"),
        spare_rows=lambda rng: integer(rng, 0, 3),
    ),
    "Hashed": _of_ids(table.Hashed, num_buckets=lambda rng: integer(rng, 1, 99)),
    "AnyId": _of_ids(table.AnyId, num_rows=lambda rng: one_of(rng, None, 64)),
    "Integers": _of_ids(
        table.Integers, num_ids=lambda rng: integer(rng, 1, 9), missing=lambda rng: one_of(rng, None, 0)
    ),
    "Bins": _of_ids(table.Bins, num_bins=lambda rng: integer(rng, 2, 5)),
    "LogRound": _of_ids(table.LogRound, resolution=lambda rng: float(rng.random() + 0.5)),
    "TimeOf": _of_ids(table.TimeOf, part=lambda rng: one_of(rng, "hour", "weekday")),
    "History": Case(
        table.History,
        lambda rng: {
            "name": "recent",
            "of": "item",
            "last": integer(rng, 1, 9),
            "within": one_of(rng, None, "30d", "12h"),
            "where": one_of(rng, None, "click"),
            "separator": None,
            "pooling": one_of(rng, "sum", "mean"),
        },
        partial(_judge_ids, table.History),
    ),
    "Dense": Case(
        table.Dense,
        lambda rng: {
            "name": "price",
            "column": one_of(rng, None, "cost"),
            "clip": (0.0, one_of(rng, 0.9, 1.0)),
            "mark_missing": one_of(rng, True, False),
        },
        _judge_dense,
    ),
    "ByTime": Case(table.ByTime, lambda rng: {"valid_from": "2026-11-08", "test_from": "2026-11-09"}, _judge_edges),
    "ByColumn": Case(table.ByColumn, lambda rng: {"column": "half"}, _judge_column),
    "ByHash": Case(table.ByHash, lambda rng: {"column": "user", "valid": 0.1, "test": 0.2}, _judge_shares),
    "Delay": Case(
        table.Delay,
        lambda rng: {"task": "buy", "time": "bought_at", "window": "7d", "policy": "correct", "wait": "1h"},
        _judge_delay,
    ),
    "Table": Case(table.Table, _table, _judge_table),
    "prepare_table": Case(table.prepare_table, _prepare, _judge_prepared),
}
INFER = {
    "infer_table": Case(
        infer.infer_table,
        lambda rng: {"source": str(_rows()), "tasks": one_of(rng, [], ["click"]), "num_rows": integer(rng, 50, 300)},
        _judge_inferred,
    )
}
