"""Drift of fields, beside counts by hand."""

import math
from collections import Counter

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from torchrec_mtl.data.table import (
    AnyId,
    Bins,
    ByHash,
    Dense,
    Hashed,
    Integers,
    LogRound,
    Table,
    TableEncoder,
    Vocabulary,
)
from torchrec_mtl.data.table.columns import Part
from torchrec_mtl.data.table.drift import added, count_encoded, count_rows_of_fields, population_stability
from torchrec_mtl.data.table.fitting import Fitting
from torchrec_mtl.data.table.hashes import stable_hashes
from torchrec_mtl.data.table.rows import read_rows
from torchrec_mtl.errors import InputError
from torchrec_mtl.inference.predictor import read_rows as read_for_prediction
from torchrec_mtl.tasks import TaskChain

FIELDS = [
    Vocabulary("few"),
    Vocabulary("many", spare_rows=100),
    Vocabulary("ordered", order="value", unknown="missing"),
    Vocabulary("alike", shares="ordered"),
    Hashed("hashed", 500),
    AnyId("any"),
    Integers("integer", 9, missing=3),
    Bins("bins", 6),
    LogRound("rounds", 40.0),
    Dense("dense"),
]
TABLE = Table("drift", "unused.csv", TaskChain(["click"]), FIELDS, split=ByHash("few"))


def raw(seed: int, num_rows: int, shift: int = 0) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    numbers = [None if each < 0.1 else each * 100 + shift for each in random.random(num_rows).tolist()]
    columns = {
        "few": random.integers(0, 8, num_rows) + shift,
        "many": random.integers(0, 300, num_rows) + 30 * shift,
        "ordered": random.integers(0, 300, num_rows) + 30 * shift,
        "alike": random.integers(0, 300, num_rows) + 30 * shift,
        "hashed": random.integers(0, 10**6, num_rows),
        "any": random.integers(0, 2**40, num_rows),
        "integer": random.integers(0, 9, num_rows),
        "bins": numbers,
        "rounds": numbers,
        "dense": numbers,
    }
    return pl.DataFrame({**columns, "click": random.integers(0, 2, num_rows)})


def typed(rows: pl.DataFrame):
    (batch,) = rows.to_arrow().combine_chunks().to_batches()
    return read_rows(TABLE, Part(batch, "rows"))


@pytest.fixture(scope="module")
def encoder() -> TableEncoder:
    fitting = Fitting(TABLE)
    fitting.look(typed(raw(0, 4000)))
    fitting.add(typed(raw(0, 4000)))
    return fitting.fit()


def test_stability_is_the_sum_of_its_definition():
    random = np.random.default_rng(3)
    for _ in range(20):
        expected, found = (random.integers(0, 50, 7).tolist() for _ in range(2))
        p, q = ([(each + 0.5) / (sum(counts) + 3.5) for each in counts] for counts in (expected, found))
        by_hand = math.fsum((b - a) * math.log(b / a) for a, b in zip(p, q, strict=True))
        assert population_stability(expected, found) == pytest.approx(by_hand, rel=1e-12)
        assert population_stability(found, expected) == pytest.approx(by_hand, rel=1e-12)
        assert population_stability(found, found) == 0


def test_stability_without_values_is_undefined_and_of_other_bins_refused():
    assert math.isnan(population_stability([0, 0], [1, 2]))
    with pytest.raises(InputError, match=r"`found` \(of 3 bins\) must have the bins of `expected` \(2\)"):
        population_stability([1, 2], [1, 2, 3])


@pytest.mark.parametrize("name", [each.name for each in FIELDS])
def test_every_value_of_every_field_is_counted_once(encoder, name):
    """Missing, unknown, or in the bin that its id or standard score says."""
    rows = raw(1, 1000, shift=2)
    counts = count_rows_of_fields(encoder, typed(rows))[name]
    values = rows[name].to_list()
    present = [value for value in values if value is not None]
    known = set(raw(0, 4000)["ordered" if name == "alike" else name].to_list())
    is_vocabulary = name in ("few", "many", "ordered", "alike")
    unknown = [value for value in present if is_vocabulary and value not in known]
    assert counts.num_values == 1000
    assert counts.num_missing == values.count(None)
    assert counts.num_unknown == len(unknown)
    bins = Counter()
    for value in present:
        if value in unknown:
            continue
        if name == "dense":
            fitted = encoder.fitted[name]
            score = (value - fitted["mean"]) / fitted["std"]
            bins[sum(score > edge for edge in np.arange(-2, 2.1, 0.5))] += 1
            continue
        if name == "any":
            bins[int(stable_hashes(pa.array([value]))[0]) >> 59] += 1
            continue
        (number,) = encoder.ids(name, pa.array([value]))
        num_ids = encoder.num_embeddings(name)
        bins[number if num_ids <= 64 else int(math.log2(number - 1)) if name == "many" else number * 32 // num_ids] += 1
    assert dict(enumerate(counts.bins)) == {number: bins[number] for number in range(len(counts.bins))}
    assert sum(counts.bins) + counts.num_missing + counts.num_unknown == 1000


def test_counts_of_parts_add_up(encoder):
    rows = raw(1, 1000, shift=2)
    parts = [count_rows_of_fields(encoder, typed(each)) for each in (rows[:300], rows[300:])]
    assert added(*parts) == count_rows_of_fields(encoder, typed(rows)) == added({}, added(*parts))


def test_bins_stay_while_a_vocabulary_grows(encoder):
    rows = typed(raw(2, 2000, shift=1))
    fitting = Fitting(TABLE)
    fitting.add(rows)
    grown, _ = encoder.extended({"many": fitting.counts["many"].table()})
    before, after = (count_rows_of_fields(each, rows)["many"] for each in (encoder, grown))
    assert len(before.bins) == len(after.bins)
    assert before.num_unknown > after.num_unknown == 0


def test_encoded_rows_are_counted_as_raw_ones(encoder):
    """But for ids that stand for a missing value and for another one too; and there are no bins."""
    rows = raw(1, 1000, shift=2)
    split = read_for_prediction(rows.drop("click"), encoder.schema(), encoder)
    found = count_encoded(encoder, split.batch(torch.arange(1000)))
    of_raw = count_rows_of_fields(encoder, typed(rows))
    assert found.keys() == of_raw.keys()
    for name, counts in found.items():
        missing, unknown = of_raw[name].num_missing, of_raw[name].num_unknown
        if name == "integer":
            missing = rows["integer"].to_list().count(3)
        elif name in ("ordered", "alike"):
            missing, unknown = missing + unknown, 0
        assert (counts.num_values, counts.num_missing, counts.num_unknown) == (1000, missing, unknown)
    assert found["dense"].num_missing > 0
    assert found["few"].num_unknown > 0
