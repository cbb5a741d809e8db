"""Metrics of rankings, against scikit-learn, exact counts of pairs and loops over groups."""

import math
from fractions import Fraction
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import Tensor

from torchrec_mtl.errors import InputError
from torchrec_mtl.metrics import auc, gain, gauc, rela_impr, suspicious

WEIGHTS = (0.0, 1e-6, 0.3, 1.0, 7.0, 1e6)
TIES = st.sampled_from([-1.0, -0.0, 0.0, 1e-45, 2.0])  # 1e-45 is a subnormal float32
SCORES = TIES | st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def scored_rows(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores, labels, weights and groups of 1 to 40 rows."""
    row = st.tuples(SCORES, st.booleans(), st.sampled_from(WEIGHTS), st.sampled_from([-5, 0, 2**40, 2**40 + 1]))
    scores, labels, weights, groups = zip(*draw(st.lists(row, min_size=1, max_size=40)), strict=True)
    return (
        torch.tensor(scores),
        torch.tensor(labels).float(),
        torch.tensor(weights, dtype=torch.float64),
        torch.tensor(groups),
    )


def sklearn_auc(scores: Tensor, labels: Tensor, weights: Tensor) -> float:
    kept = weights > 0
    if len(labels[kept].unique()) < 2:
        return math.nan
    return roc_auc_score(labels[kept], scores[kept].double(), sample_weight=weights[kept])


def sklearn_gauc(scores: Tensor, labels: Tensor, groups: Tensor, weights: Tensor) -> float:
    """One call of scikit-learn for each group."""
    values, impressions = [], []
    for group in groups.unique():
        rows = groups == group
        value = sklearn_auc(scores[rows], labels[rows], weights[rows])
        if not math.isnan(value):
            values.append(value)
            impressions.append(weights[rows].sum().item())
    return float(np.average(values, weights=impressions)) if values else math.nan


def pairwise_auc(scores: Tensor, labels: Tensor) -> float:
    """Counts every pair in exact arithmetic."""
    positives, negatives = scores[labels == 1].tolist(), scores[labels == 0].tolist()
    won = sum(2 * (p > n) + (p == n) for p in positives for n in negatives)
    return float(Fraction(won, 2 * len(positives) * len(negatives))) if positives and negatives else math.nan


@given(scored_rows())
def test_auc_counts_pairs(rows: tuple[Tensor, ...]) -> None:
    scores, labels, _, _ = rows
    assert auc(scores, labels) == pytest.approx(pairwise_auc(scores, labels), rel=1e-15, nan_ok=True)


@given(scored_rows())
def test_weighted_auc_equals_scikit_learns(rows: tuple[Tensor, ...]) -> None:
    scores, labels, weights, _ = rows
    expected = sklearn_auc(scores, labels, weights)
    assert auc(scores, labels, weights) == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True)


@given(scored_rows())
def test_integer_weights_repeat_rows(rows: tuple[Tensor, ...]) -> None:
    scores, labels, weights, groups = rows
    times = weights.long() % 10
    repeated = [column.repeat_interleave(times) for column in (scores, labels, groups)]
    assert auc(scores, labels, times) == pytest.approx(auc(*repeated[:2]), rel=1e-15, nan_ok=True)
    assert gauc(scores, labels, groups, times) == pytest.approx(gauc(*repeated), rel=1e-15, nan_ok=True)


@given(scored_rows())
@example((torch.zeros(4), torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.ones(4), torch.tensor([1, 1, 2, 2])))
def test_gauc_equals_a_loop_over_groups(rows: tuple[Tensor, ...]) -> None:
    scores, labels, weights, groups = rows
    expected = sklearn_gauc(scores, labels, groups, weights)
    assert gauc(scores, labels, groups, weights) == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True)
    expected = sklearn_gauc(scores, labels, groups, torch.ones(len(scores)))
    assert gauc(scores, labels, groups) == pytest.approx(expected, rel=1e-12, abs=1e-15, nan_ok=True)


def test_light_groups_keep_their_digits_beside_heavy_ones() -> None:
    generator = torch.Generator().manual_seed(1)
    groups = torch.arange(200) % 4
    scores = torch.randn(200, generator=generator)
    labels = (torch.rand(200, generator=generator) < 0.4).float()
    weights = torch.rand(200, generator=generator, dtype=torch.float64) * torch.tensor([1e8, 1.0, 1e-4, 1e-8])[groups]
    light = groups == 3
    # Heavy groups of one class have no AUC, so only the light group counts.
    one_class = torch.where(light, labels, 0.0)
    expected = sklearn_auc(scores[light], labels[light], weights[light])
    assert gauc(scores, one_class, groups, weights) == pytest.approx(expected, rel=1e-12)


@given(scored_rows(), st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(rows: tuple[Tensor, ...], random: Random) -> None:
    order = list(range(len(rows[0])))
    random.shuffle(order)
    scores, labels, weights, groups = rows
    moved_scores, moved_labels, moved_weights, moved_groups = (column[order] for column in rows)
    assert repr(auc(scores, labels)) == repr(auc(moved_scores, moved_labels))  # bit for bit, and NaN is NaN
    unweighted = gauc(scores, labels, groups), gauc(moved_scores, moved_labels, moved_groups)
    assert repr(unweighted[0]) == repr(unweighted[1])
    moved = auc(moved_scores, moved_labels, moved_weights)
    assert auc(scores, labels, weights) == pytest.approx(moved, abs=1e-12, nan_ok=True)
    moved = gauc(moved_scores, moved_labels, moved_groups, moved_weights)
    assert gauc(scores, labels, groups, weights) == pytest.approx(moved, abs=1e-12, nan_ok=True)


@given(scored_rows())
def test_one_group_is_the_auc_and_reversed_scores_its_complement(rows: tuple[Tensor, ...]) -> None:
    scores, labels, weights, _ = rows
    value = auc(scores, labels, weights)
    assert gauc(scores, labels, torch.zeros_like(labels).long(), weights) == pytest.approx(value, nan_ok=True)
    assert auc(-scores, labels, weights) == pytest.approx(1 - value, abs=1e-12, nan_ok=True)


def test_rare_positives_in_many_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500_000, generator=generator) - 8
    labels = (torch.rand(500_000, generator=generator) < 3 * logits.sigmoid()).float()
    assert auc(logits, labels) == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
    assert auc(logits.double().sigmoid(), labels) == pytest.approx(auc(logits, labels), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int64])
def test_scores_may_have_any_type(dtype: torch.dtype) -> None:
    scores, labels = torch.tensor([3, 1, 2, 2], dtype=dtype), torch.tensor([True, False, True, False])
    assert auc(scores, labels) == 0.875
    assert gauc(scores, labels, torch.tensor([1, 1, 1, 1])) == 0.875


@pytest.mark.parametrize(
    ("scores", "labels", "weights"),
    [([], [], None), ([1.0], [1.0], None), ([1.0, 2.0], [0.0, 0.0], None), ([1.0, 2.0], [0.0, 1.0], [1.0, 0.0])],
)
def test_one_class_has_no_auc(scores: list[float], labels: list[float], weights: list[float] | None) -> None:
    rows = torch.tensor(scores), torch.tensor(labels)
    weight = None if weights is None else torch.tensor(weights)
    assert math.isnan(auc(*rows, weight))
    assert math.isnan(gauc(*rows, torch.zeros(len(scores), dtype=torch.int64), weight))


def test_rela_impr_and_gain() -> None:
    assert rela_impr(0.6556, 0.5841) == pytest.approx(0.0715 / 0.0841)
    assert gain(0.6198, 0.6089) == pytest.approx(0.0109 / 0.6089)
    assert rela_impr(0.6, 0.6) == gain(0.6, 0.6) == 0
    assert math.isnan(rela_impr(0.6, 0.5))
    assert math.isnan(rela_impr(math.nan, 0.6))
    assert math.isnan(rela_impr(0.6, math.nan))
    assert math.isnan(gain(0.6, math.nan))
    assert math.isnan(gain(0.6, 0.0))


@pytest.mark.parametrize(
    ("value", "positives", "part"),
    [(0.4951, 10, "of chance"), (0.5049, 10, "of chance"), (0.9951, 10, "nearly perfect"), (math.nan, 0, "undefined")],
)
def test_suspicious(value: float, positives: int, part: str) -> None:
    assert part in (suspicious(value, positives, negatives=20) or "")


@pytest.mark.parametrize("value", [0.49, 0.51, 0.99])
def test_not_suspicious(value: float) -> None:
    assert suspicious(value, positives=10, negatives=20) is None


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        (torch.tensor([1.0, 2.0]), r"`groups` must be integer ids, not torch.float32"),
        (torch.tensor([1]), r"`groups` must have shape \[2\], not \[1\]"),
    ],
)
def test_wrong_groups_raise(groups: Tensor, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        gauc(torch.zeros(2), torch.tensor([0.0, 1.0]), groups)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_raise(score: float) -> None:
    scores, labels = torch.tensor([0.0, score]), torch.tensor([0.0, 1.0])
    with pytest.raises(InputError, match=rf"`scores` must be finite, but entry \[1\] is {score}"):
        auc(scores, labels)
    with pytest.raises(InputError, match=rf"`scores` must be finite, but entry \[1\] is {score}"):
        gauc(scores, labels, torch.tensor([1, 1]))
