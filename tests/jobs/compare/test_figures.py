"""The pictures of a comparison show what they say."""

import numpy as np
import pytest

from torchrec_mtl.jobs.compare import figures
from torchrec_mtl.jobs.compare.selection import Selection
from torchrec_mtl.modules import SmoothStepSchedule

RATES = {
    "odd": [0, 1, 2, 3, 4],
    "even, between two rates": [0, 1, 2, 3, 3, 4],
    "even, half and half": [1] * 3 + [2] * 3,
    "one rate": [2] * 6,
    "hardly another": [0] + [4] * 999,
}


@pytest.mark.parametrize("rates", RATES)
def test_groups_of_selection_rates_are_disjoint_and_the_middle_one_has_samples(rates):
    rate = np.array(RATES[rates]) / 4
    low, middle, high = figures._by_rate(rate).values()
    assert not ((low & middle) | (middle & high) | (low & high)).any()
    assert middle.any()
    assert (rate[low].max(initial=0) < rate[middle]).all() or not low.any()
    assert (rate[high].min(initial=1) > rate[middle]).all() or not high.any()
    assert low.any() == (rate < rate[middle][0]).any()
    assert high.any() == (rate > rate[middle][0]).any()


@pytest.mark.parametrize("rates", ["even, between two rates", "one rate"])
def test_the_picture_is_drawn(rates):
    counts = np.array(RATES[rates])
    selected = np.arange(4) < counts[:, None]
    plane = np.random.default_rng(0).normal(size=(len(counts), 2))
    assert figures.selection_rates(Selection(selected, plane, SmoothStepSchedule())).startswith(b"\x89PNG")
