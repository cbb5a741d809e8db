"""Bins, log-rounds and dense numbers beside NumPy."""

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrec_mtl.data import log_round
from torchrec_mtl.data.table import Bins, Dense, LogRound
from torchrec_mtl.data.table.counts import Counts
from torchrec_mtl.errors import InputError

NUMBERS = st.lists(st.floats(-1e12, 1e12) | st.integers(-5, 5).map(float), min_size=1, max_size=200)


def fit(field: Bins | LogRound | Dense, numbers: list[float], num_parts: int = 3) -> dict:
    counts = Counts()
    for part in np.array_split(np.array(numbers), num_parts):
        counts.add(field.to_count(pa.array([*part, None])))
    return field.fit(counts.table())


@given(NUMBERS, st.integers(2, 40))
def test_bins_are_the_quantiles_of_numpy_to_16_bits(numbers: list[float], num_bins: int) -> None:
    field = Bins("x", num_bins)
    fitted = fit(field, numbers)
    shares = np.arange(1, num_bins) / num_bins
    exact = np.quantile(numbers, shares, method="inverted_cdf")
    for edge in fitted["edges"]:
        assert (np.abs(exact - edge) <= np.abs(exact) * 2.0**-16).any()
    assert all(low < high for low, high in zip(fitted["edges"], fitted["edges"][1:]))  # noqa: B905
    ids = field.encode(pa.array([*numbers, None, -abs(min(numbers)) * 2 - 1, abs(max(numbers)) * 2 + 1]), fitted)
    assert ids[len(numbers)] == 0
    assert ids[-2] == 1
    assert ids[-1] == len(fitted["edges"]) + 1 == field.num_embeddings(fitted) - 1
    order = np.argsort(numbers, kind="stable")
    assert (np.diff(ids[: len(numbers)][order]) >= 0).all()  # bins follow the order of numbers


def test_bins_of_numbers_that_all_differ_have_equally_many_rows() -> None:
    numbers = np.random.default_rng(0).lognormal(2, 2, 10_000)
    field = Bins("x", 16)
    counts = np.bincount(field.encode(pa.array(numbers), fit(field, numbers.tolist())))
    assert counts[0] == 0
    assert abs(counts[1:] - 625).max() <= 5


@given(NUMBERS, st.sampled_from([0.5, 1.0, 3.0]))
def test_log_rounds_are_those_of_the_library_and_keep_to_the_training_rows(
    numbers: list[float], resolution: float
) -> None:
    field = LogRound("x", resolution)
    fitted = fit(field, numbers)
    signs = np.sign(numbers)
    rounds = (signs * np.rint(resolution * np.log2(1 + np.abs(numbers)))).astype(int)
    ids = field.encode(pa.array(numbers), fitted)
    assert (ids == rounds - rounds.min() + 1).all()
    assert field.num_embeddings(fitted) == rounds.max() - rounds.min() + 2
    beyond = field.encode(pa.array([-1e15, 1e15, None]), fitted).tolist()
    assert beyond == [1, field.num_embeddings(fitted) - 1, 0]


def test_log_rounds_are_those_of_eq_13() -> None:
    numbers = np.arange(1000)
    field = LogRound("x")
    assert (field.encode(pa.array(numbers), fit(field, numbers.tolist())) - 1 == log_round(numbers)).all()


@given(NUMBERS)
def test_dense_numbers_are_standardised_by_the_training_rows(numbers: list[float]) -> None:
    field = Dense("x", clip=(0, 1))
    fitted = fit(field, numbers)
    encoded = field.encode(pa.array([*numbers, None]), fitted)
    assert encoded.dtype == np.float32
    assert encoded[-1].tolist() == [0, 1]
    assert (encoded[:-1, 1] == 0).all()
    values = encoded[:-1, 0]
    assert np.isfinite(values).all()
    if len(set(numbers)) == 1:
        assert (values == 0).all()  # a constant says nothing
    elif np.std(numbers) > 1e-3 * np.abs(numbers).max():
        scaled = (np.array(numbers) - np.mean(numbers)) / np.std(numbers)
        assert np.abs(values - scaled).max() < 0.1


@pytest.mark.parametrize("constant", [0.1, 1.7, 1e9 / 3, -12345.678, 1e-300])
def test_a_constant_is_0_however_it_is_rounded(constant: float) -> None:
    field = Dense("x")
    fitted = fit(field, [constant] * 7)
    assert field.encode(pa.array([constant, constant * 2, -constant]), fitted)[:, 0].tolist() == [0, 0, 0]


def test_clipped_quantiles_bound_dense_numbers() -> None:
    numbers = np.random.default_rng(0).standard_cauchy(5000)
    field = Dense("x", clip=(0.01, 0.99), mark_missing=False)
    encoded = field.encode(pa.array(numbers), fit(field, numbers.tolist()))
    assert encoded.shape == (5000, 1)
    low, high = np.quantile(numbers, [0.01, 0.99], method="inverted_cdf")
    inside = (numbers > low) & (numbers < high)
    assert len(np.unique(encoded[~inside])) <= 4
    assert abs(encoded.mean()) < 1e-2
    assert abs(encoded.std() - 1) < 1e-2


@pytest.mark.parametrize("field", [Bins("x"), LogRound("x"), Dense("x")], ids=lambda field: type(field).__name__)
def test_a_field_without_any_training_value_still_encodes(field: Bins | LogRound | Dense) -> None:
    fitted = field.fit(Counts().table())
    assert field.encode(pa.array([None, 3.0]), fitted).max() <= 1
    assert field.encode(pa.nulls(2, pa.float64()), fitted).shape[0] == 2


WRONG = {
    "one bin": (lambda: Bins("x", 1), "num_bins"),
    "no resolution": (lambda: LogRound("x", 0.0), "resolution"),
    "infinite resolution": (lambda: LogRound("x", float("inf")), "resolution"),
    "clip upside down": (lambda: Dense("x", clip=(0.9, 0.1)), "clip"),
    "clip beyond 1": (lambda: Dense("x", clip=(0, 2)), "clip"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_refused(case: str) -> None:
    make, argument = WRONG[case]
    with pytest.raises(InputError, match=f"`{argument}` .*of field"):
        make()


def test_counts_are_those_of_all_parts_whatever_their_types() -> None:
    counts = Counts()
    for part in (pa.nulls(3), pa.array([], pa.int64()), pa.array(["b", "a", None]), pa.array(["b"], pa.large_string())):
        counts.add(part)
    assert counts.table().rows() == [("b", 2), ("a", 1)]


def test_counts_stay_few_while_parts_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchrec_mtl.data.table.counts.NUM_PENDING", 10)
    counts, expected = Counts(), pl.Series(np.random.default_rng(0).integers(30, size=1000))
    for part in np.array_split(expected.to_numpy(), 50):
        counts.add(pa.array(part))
        assert len(counts._parts) <= 6
    assert dict(counts.table().rows()) == dict(expected.value_counts().rows())
