"""Keys in the order of scores, and edges between ranges of equal weight."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrec_mtl.metrics.ranges import edges, merged, ordered_keys

FINITE = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 5e-324, -5e-324])
KEYS = st.integers(1 - 2**63, 2**63 - 1) | st.sampled_from([1 - 2**63, 2**63 - 1, 7, 8])


@given(st.lists(FINITE, min_size=2, max_size=2))
def test_keys_are_ordered_as_their_scores(pair: list[float]) -> None:
    for dtype in (torch.float64, torch.float32):
        scores = torch.tensor(pair, dtype=dtype)
        (a, b), (x, y) = ordered_keys(scores).tolist(), scores.tolist()
        assert (a < b, a == b) == (x < y, x == y)


@given(st.lists(st.tuples(KEYS, st.integers(1, 9)), max_size=30).map(sorted), st.integers(1, 9))
def test_a_key_is_in_the_range_where_the_middle_of_its_weight_falls(rows: list, num_ranges: int) -> None:
    keys, weights = (torch.tensor([row[i] for row in rows], dtype=torch.int64) for i in (0, 1))
    found = edges(keys, weights, num_ranges, lambda sums: sums)
    assert len(found) == num_ranges - 1
    for key, of_range in zip(keys.tolist(), torch.bucketize(keys, found).tolist(), strict=True):
        twice_middle = 2 * weights[keys < key].sum() + weights[keys == key].sum()
        assert of_range == num_ranges * int(twice_middle) // (2 * int(weights.sum()))


def test_rows_of_equal_score_and_label_are_one_and_keep_their_weight() -> None:
    scores, labels = torch.tensor([1.0, 0.0, 1.0, -0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0])
    columns = merged(scores, labels, torch.tensor([2.0, 1.0, 4.0, 0.5, 8.0]))
    assert [column.tolist() for column in columns] == [[0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [1.5, 4.0, 10.0]]
    assert [len(column) for column in merged(*[torch.empty(0)] * 3)] == [0, 0, 0]


@pytest.mark.parametrize("weight", [2.0**24, 0.1])
def test_merged_weights_are_sums_in_float64(weight: float) -> None:
    weights = torch.tensor([weight, 1.0, 1.0])
    *_, total = merged(torch.zeros(3), torch.ones(3), weights)
    assert total.tolist() == [math.fsum(weights.tolist())]  # 2^24 + 1 is no float32
