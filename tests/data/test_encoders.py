import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torchrec_mtl.data import encoders, log_round
from torchrec_mtl.data.encoders import ValueCounts, Vocabularies
from torchrec_mtl.errors import InputError


@pytest.mark.parametrize(("num_pending", "num_counted"), [(3, 4), (2**18, 2**22)])
@given(
    parts=st.lists(st.lists(st.tuples(st.integers(1, 2**40) | st.integers(1, 9), st.integers(0, 5)), min_size=1)),
    once=st.lists(st.integers(1, 9)),
    min_count=st.integers(1, 6),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ids_that_occur_often_enough(
    num_pending: int, num_counted: int, parts: list, once: list[int], min_count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "NUM_PENDING", num_pending)
    monkeypatch.setattr(encoders, "NUM_COUNTED", num_counted)
    counts, expected = ValueCounts(), Counter(once)
    counts.add(np.array(once, np.int64))
    for part in parts:
        counts.add(*np.array(part, np.int64).T)
        for number, weight in part:
            expected[number] += weight
    found = counts.at_least(min_count)
    assert found.tolist() == sorted(number for number, count in expected.items() if count >= min_count)


@given(st.sets(st.integers(1, 10**18 - 1)), st.lists(st.integers(0, 10**18 - 1)))
def test_codes(known: set[int], sought: list[int]) -> None:
    vocabularies = Vocabularies({"101": np.array(sorted(known), np.int64)})
    codes = {number: code for code, number in enumerate(sorted(known), 1)}
    both = [*sought, *known]
    assert vocabularies.encode("101", np.array(both, np.int64)).tolist() == [codes.get(number, 0) for number in both]


def test_another_vocabulary_has_another_digest() -> None:
    vocabularies = [
        {"101": [1, 2], "121": [3]},
        {"101": [1, 2], "121": [4]},
        {"101": [1], "121": [2, 3]},
        {"101": [1, 2], "122": [3]},
    ]
    digests = {
        Vocabularies({field: np.array(ids, np.int64) for field, ids in vocabulary.items()}).digest
        for vocabulary in vocabularies
    }
    assert len(digests) == 4


@given(st.lists(st.floats(0, 1e300)), st.sampled_from([0.5, 1.0, 4.0, 10.0]))
def test_log_round_rounds_the_logarithm(values: list[float], resolution: float) -> None:
    ids = log_round(values, resolution)
    assert ids.dtype == "int64"
    assert ids.min(initial=0) >= 0
    for found, value in zip(ids, values, strict=True):
        assert abs(found - resolution * math.log2(1 + value)) <= 0.5 + 1e-9


def test_log_round_keeps_order_and_shape() -> None:
    ids = log_round([[0, 1], [5, 1e6]])
    assert ids.shape == (2, 2)
    assert (ids.ravel()[1:] >= ids.ravel()[:-1]).all()


@pytest.mark.parametrize("value", [-1.0, -1e-9, math.nan, math.inf])
def test_wrong_value(value: float) -> None:
    with pytest.raises(InputError, match=rf"`values` \(={value} at position 2, counted from 0\) must be finite and"):
        log_round([0.0, 1.0, value])


def test_wrong_resolution() -> None:
    with pytest.raises(InputError, match=r"`resolution` \(=0\) must be above 0"):
        log_round([1.0], resolution=0)
