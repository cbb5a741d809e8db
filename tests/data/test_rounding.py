import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrec_mtl.data import log_round
from torchrec_mtl.errors import InputError


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
