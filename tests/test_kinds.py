"""Kinds of tasks: what they allow, where they may stand in a forest, and how they are kept in files."""

import re

import numpy as np
import pytest

from torchrec_mtl import ZILN, Binary, Classes, Huber, Ordinal, Quantile, SquaredError, Task, TaskForest
from torchrec_mtl.data import Field, Schema
from torchrec_mtl.data.fingerprint import columns_text
from torchrec_mtl.errors import InputError
from torchrec_mtl.kinds import KINDS, kind_of

ALL = [Binary(), SquaredError(), Huber(0.5), ZILN(), Quantile((0.1, 0.5)), Classes(2), Ordinal(2)]
VALUES = np.array([0.0, 1.0, 0.5, -2.0, np.inf, -np.inf, np.nan])


def test_every_kind_is_here():
    assert [kind.name for kind in ALL] == list(KINDS)


@pytest.mark.parametrize(
    ("kind", "allowed"),
    zip(ALL, ["1100000", "1111000", "1111000", "1110000", "1111000", "1100000", "1100000"], strict=True),
    ids=[kind.name for kind in ALL],
)
def test_labels_that_a_kind_allows(kind, allowed):
    assert "".join(map(str, kind.allows(VALUES).astype(int))) == allowed


@pytest.mark.parametrize("kind", ALL, ids=[kind.name for kind in ALL])
def test_a_schema_keeps_the_kind(kind, tmp_path):
    tasks = TaskForest(Task("buy"), Task("spend", after="buy", kind=kind, weight_column="w"))
    schema = Schema("shop", [Field("item", 3)], tasks)
    schema.save(tmp_path)
    assert Schema.load(tmp_path).tasks == tasks
    assert ("kind" in (tmp_path / "schema.json").read_text()) == (kind != Binary())


def test_the_fingerprint_of_a_funnel_is_that_of_older_versions():
    """No kind is in it, but the kinds of values are."""
    funnel, squared, huber = (
        columns_text(Schema("shop", [Field("item", 3)], TaskForest(Task("buy"), Task("spend", kind=kind))))
        for kind in (Binary(), SquaredError(), Huber())
    )
    assert '"tasks": [{"name": "buy", "after": null, "label_column": "buy", "weight_column": null}, ' in funnel
    assert "kind" not in funnel
    assert squared != huber


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Quantile(()), "`levels` (=[]) must rise, above 0 and below 1"),
        (lambda: Quantile((0.5, 0.5)), "`levels` (=[0.5, 0.5]) must rise, above 0 and below 1"),
        (lambda: Quantile((0.5, 1.0)), "`levels` (=[0.5, 1.0]) must rise, above 0 and below 1"),
        (lambda: Classes(1), "`num_classes` (=1) must be at least 2"),
        (lambda: Ordinal(2.5), "`num_classes` (=2.5) must be of type int"),
        (lambda: Huber(0.0), "`delta` (=0.0) must be above 0"),
        (lambda: Huber(-1.0), "`delta` (=-1.0) must be at least 0"),
        (lambda: Task("spend", kind="ziln"), "`kind` (='ziln') must be of type Kind"),
        (lambda: kind_of({"name": "zlin"}), f"`kind` (='zlin') must be one of {list(KINDS)}; the nearest is 'ziln'"),
        (
            lambda: TaskForest(Task("a", kind=ZILN()), Task("b", after="a")),
            "`after` (='a') of task 'b' must happen or not, not be a value",
        ),
        (
            lambda: TaskForest(Task("a", kind=ZILN()), Task("b")),
            "`tasks`: 'a', a value, must be given after all tasks that happen or not, such as 'b'",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(make, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        make()


def test_values_alone_are_a_forest():
    tasks = TaskForest(Task("spend", kind=ZILN()), Task("dwell", kind=SquaredError()))
    assert len(tasks.funnel) == 0
    assert tasks.num_outputs == 4
