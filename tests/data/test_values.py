"""Labels that are values, from files to batches: what is kept, what is counted, what is refused."""

import math
import re

import numpy as np
import polars as pl
import pytest
import torch

from tests.generators.spend import rows, write_log
from torchrec_mtl import (
    ZILN,
    ByColumn,
    Classes,
    Delay,
    History,
    Quantile,
    SquaredError,
    Table,
    Task,
    TaskForest,
    Vocabulary,
)
from torchrec_mtl.data import (
    BatchLoader,
    Field,
    MultiTaskBatch,
    Schema,
    Split,
    StreamLoader,
    build_once,
    check_batch,
    read_split,
    stream_split,
)
from torchrec_mtl.data.label_statistics import LabelCounts
from torchrec_mtl.data.table import prepare_table
from torchrec_mtl.errors import InputError

TASKS = TaskForest(
    Task("click"),
    Task("buy", after="click"),
    Task("spend", after="buy", kind=ZILN()),
    Task("dwell", after="click", kind=Quantile((0.5, 0.9))),
)
SCHEMA = Schema("shop", [Field("item", 12)], TASKS)


def table(source, **arguments):
    return Table(
        "shop", str(source), TASKS, [Vocabulary("user"), Vocabulary("item")], split=ByColumn("split"), **arguments
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    return prepare_table(table(write_log(folder / "log.parquet", 900)), folder / "data")


def test_a_declared_table_keeps_values_and_counts_them_where_the_step_before_happened(prepared):
    log = rows(900).filter(pl.col("split") == "train")
    split, streamed = read_split(prepared, "train"), stream_split(prepared, "train")
    assert Schema.load(prepared).tasks == TASKS
    bought, clicked = log.filter("buy")["spend"].to_numpy(), log.filter("click")["dwell"].to_numpy()
    for each in (split, streamed):
        assert each.base_rates().tolist() == pytest.approx([log["click"].mean(), log["buy"].mean()])
        spend, dwell = each.value_statistics()["spend"], each.value_statistics()["dwell"]
        assert (spend.num_rows, spend.num_positive, dwell.num_rows) == (len(bought), (bought > 0).sum(), len(clicked))
        assert spend[1:3] == pytest.approx((bought.mean(), bought.std()), rel=1e-6)
        logs = np.log(bought[bought > 0])
        assert spend[4:6] == pytest.approx((logs.mean(), logs.std()), rel=1e-6)
        assert dwell[1:3] == pytest.approx((clicked.mean(), clicked.std()), rel=1e-6)
    for loader in (BatchLoader(split, 64), StreamLoader(streamed, 64)):
        labels = torch.cat([batch.labels for batch in loader])
        torch.testing.assert_close(labels[:, 2], torch.tensor(log["spend"].fill_null(0).to_list()))
        torch.testing.assert_close(labels[:, 3], torch.tensor(log["dwell"].fill_null(0).to_list()))
        assert labels[:, 0].tolist() == log["click"].to_list()


def test_statistics_do_not_depend_on_the_parts():
    """Nor on a large mean, of whose square the deviation is a small rest."""
    rng = np.random.default_rng(0)
    labels = np.stack([np.ones(1000), rng.normal(1e6, 1.0, 1000)], axis=1)
    weights = rng.integers(0, 2, (1000, 2)).astype(float)
    tasks, found = TaskForest(Task("buy"), Task("spend", after="buy", kind=SquaredError())), []
    for size in (1000, 7):
        counts = LabelCounts(tasks)
        for start in range(0, 1000, size):
            counts.add(labels[start : start + size], weights[start : start + size])
        found.append(counts.values()["spend"])
    kept = labels[(weights > 0).all(1), 1]
    for statistics in found:
        assert statistics[:3] == pytest.approx((len(kept), kept.mean(), kept.std()), rel=1e-10)


MISSING = r"label \(=nan\) may be missing only where its weight is 0 or 'buy' did not happen"
BAD = {
    "a negative spend": ({"spend": -1.0}, "spend", r"label \(=-1.0\) must be finite and at least 0"),
    "an infinite spend": ({"spend": math.inf}, "spend", r"label \(=inf\) must be finite and at least 0"),
    "no spend of a purchase": ({"spend": None}, "spend", MISSING),
    "an infinite dwell": ({"dwell": -math.inf}, "dwell", r"label \(=-inf\) must be finite"),
    "half a click": ({"click": 0.5}, "click", r"label \(=0.5\) must be 0 or 1"),
}
GOOD = {"item": 3, "click": 1.0, "buy": 1.0, "spend": 9.5, "dwell": -3.0}


@pytest.mark.parametrize(("change", "column", "message"), BAD.values(), ids=list(BAD))
def test_a_bad_label_of_a_prepared_file_is_refused(change, column, message, tmp_path):
    def build(folder):
        frame = pl.DataFrame([GOOD, {**GOOD, **change}], strict=False)
        for split in ("train", "valid", "test"):
            frame.write_parquet(folder / f"{split}.parquet")
        return SCHEMA

    with pytest.raises(InputError, match=rf"column '{column}', row 1 \(counted from 0\): {message}"):
        build_once(tmp_path / "data", build)


@pytest.mark.parametrize(("change", "column", "message"), BAD.values(), ids=list(BAD))
def test_a_bad_label_of_a_batch_is_refused(change, column, message):
    labels = [[math.nan if row[name] is None else row[name] for name in TASKS] for row in (GOOD, {**GOOD, **change})]
    sparse = Split(SCHEMA, {"item": [3, 3]}, [[0, 0, 0, 0]] * 2).batch(torch.arange(2)).sparse_features
    batch = MultiTaskBatch(torch.zeros(2, 0), sparse, torch.tensor(labels))
    with pytest.raises(InputError, match=rf"batch: column '{column}', row 1 \(counted from 0\): {message}"):
        check_batch(batch, SCHEMA)


@pytest.mark.parametrize(("change", "column", "message"), BAD.values(), ids=list(BAD))
def test_a_bad_label_of_a_raw_row_is_refused_or_put_aside(change, column, message, tmp_path):
    raw = {**GOOD, "user": "u1", "item": "i1", "split": "train"}
    good = [{**raw, "split": split} for split in ("train", "valid", "test") for _ in range(3)]
    pl.DataFrame([*good, {**raw, **change}], strict=False).write_parquet(tmp_path / "log.parquet")
    declared = table(tmp_path / "log.parquet")
    with pytest.raises(InputError, match=rf"column '{column}', row 9 \(counted from 0\): "):
        prepare_table(declared, tmp_path / "strict")
    folder = prepare_table(declared, tmp_path / "aside", bad_rows="quarantine")
    assert len(read_split(folder, "train")) == 3


def test_a_label_that_does_not_count_may_be_missing():
    labels = np.array([[1, 1, 2.5, 4.0], [1, 0, np.nan, 4.0], [0, 0, np.nan, np.nan], [1, 1, np.nan, 4.0]])
    weights = np.ones((4, 4))
    weights[3, 2] = 0
    split = Split(SCHEMA, {"item": [0, 1, 2, 3]}, labels, weights=weights)
    assert split.batch(torch.arange(4)).labels[:, 2].tolist() == [2.5, 0.0, 0.0, 0.0]
    assert split.value_statistics()["spend"].num_rows == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"delays": [Delay("spend", time="at", window="7d")], "time": "ts"},
            "delay of 'spend' must be of a task that happens or not, not of a value",
        ),
        (
            {"delays": [Delay("buy", time="at", window="7d")], "time": "ts"},
            "`delays` must have one of 'spend', since 'buy', which it needs, has one",
        ),
    ],
)
def test_what_cannot_be_declared_is_one_sentence(arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        table("log.parquet", **arguments)


@pytest.mark.parametrize("label", [-1.0, 3.0, 0.5])
def test_a_label_that_is_no_class_is_refused(label):
    schema = Schema("shop", [Field("item", 12)], TaskForest(Task("plan", kind=Classes(3))))
    rule = rf"column 'plan', row 1 \(counted from 0\): label \(={label}\) must be a class, a whole number from 0 to 2"
    with pytest.raises(InputError, match=rule):
        Split(schema, {"item": [0, 1]}, [[2.0], [label]])


def test_a_history_lists_no_rows_by_a_value():
    fields = [Vocabulary("item"), History("spent", "item", last=3, where="spend")]
    with pytest.raises(InputError, match="must not list rows by 'spend', which is a value and does not happen"):
        Table("shop", "log.parquet", TASKS, fields, split=ByColumn("split"), time="ts", group="user")
