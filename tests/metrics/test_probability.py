"""Metrics of probabilities, against scikit-learn, TorchRec and exact values."""

import math
from collections.abc import Callable
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import calibration as sklearn_calibration
from sklearn.metrics import log_loss as sklearn_log_loss
from torch import Tensor
from torchrec.metrics.ne import compute_cross_entropy, compute_ne

from torchrec_mtl.errors import InputError
from torchrec_mtl.metrics import calibration, calibration_curve, conditional_logits, log_loss, normalized_entropy

ROW = st.tuples(
    st.sampled_from([-9.0, -0.5, 0.0, 4.0]) | st.floats(-12, 12),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([0.0, 1e-4, 0.3, 1.0, 7.0, 1e4]),
)
ROWS = st.lists(ROW, min_size=1, max_size=40).map(lambda rows: torch.tensor(rows, dtype=torch.float64).unbind(1))


def undefined(labels: Tensor, weights: Tensor) -> bool:
    return len(labels[weights > 0].unique()) < 2


@given(ROWS)
def test_log_loss_equals_scikit_learns(rows: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, labels, weights = rows
    if weights.sum() == 0:
        assert math.isnan(log_loss(logits, labels, weights))
    else:
        expected = sklearn_log_loss(labels, logits.sigmoid(), sample_weight=weights, labels=[0, 1])
        assert log_loss(logits, labels, weights) == pytest.approx(expected, rel=1e-9)
    expected = sklearn_log_loss(labels, logits.sigmoid(), labels=[0, 1])
    assert log_loss(logits, labels) == pytest.approx(expected, rel=1e-9)


@given(ROWS)
def test_normalized_entropy_equals_torchrecs(rows: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, labels, weights = rows
    value = normalized_entropy(logits, labels, weights)
    if undefined(labels, weights):
        assert math.isnan(value)
        return
    eta = 1e-12  # torchrec clamps its probabilities here
    cross_entropy = compute_cross_entropy(labels, logits.sigmoid(), weights, eta).sum()
    positives, negatives = (weights * labels).sum(), (weights * (1 - labels)).sum()
    expected = compute_ne(cross_entropy, weights.sum(), positives, negatives, eta).item()
    assert value == pytest.approx(expected, rel=1e-6)


@given(ROWS)
def test_calibration_is_predicted_over_observed(rows: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, labels, weights = rows
    expected = sum(w / (1 + math.exp(-x)) for x, _, w in zip(*map(Tensor.tolist, rows), strict=True))
    observed = sum(w * y for _, y, w in zip(*map(Tensor.tolist, rows), strict=True))
    value = calibration(logits, labels, weights)
    assert value == pytest.approx(expected / observed if observed else math.nan, rel=1e-12, nan_ok=True)


@given(ROWS, st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(rows: tuple[Tensor, Tensor, Tensor], random: Random) -> None:
    order = list(range(len(rows[0])))
    random.shuffle(order)
    moved = [column[order] for column in rows]
    for metric in (log_loss, normalized_entropy, calibration):
        assert metric(*rows) == pytest.approx(metric(*moved), rel=1e-12, nan_ok=True)
    for column, moved_column in zip(calibration_curve(*rows), calibration_curve(*moved), strict=True):
        torch.testing.assert_close(column, moved_column, rtol=1e-12, atol=0)


def test_extreme_logits_keep_their_digits() -> None:
    one = torch.ones(1)
    assert log_loss(torch.tensor([40.0]), one) == pytest.approx(math.exp(-40), rel=1e-12)
    assert log_loss(torch.tensor([-40.0]), 0 * one) == pytest.approx(math.exp(-40), rel=1e-12)
    assert log_loss(torch.tensor([1e4]), 0 * one) == 1e4
    assert log_loss(torch.tensor([-3e38]), one) == pytest.approx(3e38)
    assert calibration(torch.tensor([-40.0]), one) == pytest.approx(math.exp(-40), rel=1e-12)


def test_float32_rows_are_summed_in_float64() -> None:
    logits, labels = torch.full((300_000,), -1.0), torch.zeros(300_000)
    assert log_loss(logits, labels) == pytest.approx(math.log1p(math.exp(-1)), rel=1e-13)
    labels[0] = 1
    assert calibration(logits, labels) == pytest.approx(300_000 / (1 + math.e), rel=1e-13)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_normalized_entropy_keeps_the_digits_of_a_rare_class(label: float) -> None:
    rare = 1e-13
    labels, weights = torch.tensor([label, 1 - label]), torch.tensor([rare, 1.0], dtype=torch.float64)
    entropy = rare * math.log((1 + rare) / rare) + math.log1p(rare)  # times 1 + rare, the weight of the rows
    expected = math.log(2) * (1 + rare) / entropy
    assert normalized_entropy(torch.zeros(2), labels, weights) == pytest.approx(expected, rel=1e-12)


def test_base_rate_has_a_normalized_entropy_of_one() -> None:
    labels = torch.tensor([1.0, 0.0, 0.0, 0.0])
    base_rate = torch.full((4,), 0.25, dtype=torch.float64).logit()
    assert normalized_entropy(base_rate, labels) == pytest.approx(1, rel=1e-12)
    assert calibration(base_rate, labels) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("metric", [log_loss, normalized_entropy, calibration])
def test_no_rows_give_nan(metric: Callable[..., float]) -> None:
    assert math.isnan(metric(torch.empty(0), torch.empty(0)))


@pytest.mark.parametrize("metric", [normalized_entropy, calibration])
def test_no_positives_give_nan(metric: Callable[..., float]) -> None:
    assert math.isnan(metric(torch.zeros(3), torch.zeros(3)))


def test_calibration_curve_equals_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, generator=generator, dtype=torch.float64)
    labels = (torch.rand(400, generator=generator) < logits.sigmoid()).double()
    rate, prediction = sklearn_calibration.calibration_curve(labels, logits.sigmoid(), n_bins=8, strategy="quantile")
    curve = calibration_curve(logits, labels, num_bins=8)
    assert curve.num_rows.tolist() == [50] * 8
    assert curve.mean_prediction.tolist() == pytest.approx(prediction.tolist(), rel=1e-12)
    assert curve.positive_rate.tolist() == pytest.approx(rate.tolist(), rel=1e-12)


@given(ROWS, st.integers(1, 50))
def test_calibration_curve_holds_every_row_once(rows: tuple[Tensor, Tensor, Tensor], num_bins: int) -> None:
    logits, labels, weights = rows
    curve = calibration_curve(logits, labels, num_bins=num_bins)
    assert curve.num_rows.sum() == len(logits)
    assert len(curve.num_rows) <= num_bins
    assert (curve.num_rows > 0).all()
    assert (curve.mean_prediction.diff() > -1e-15).all()
    assert (curve.num_rows * curve.positive_rate).sum().item() == pytest.approx(labels.sum().item(), abs=1e-9)
    assert (curve.num_rows * curve.mean_prediction).sum().item() == pytest.approx(logits.sigmoid().sum().item())
    assert calibration_curve(logits, labels, weights, num_bins).num_rows.sum() == (weights > 0).sum()


def test_calibration_curve_weighs_rows_and_keeps_ties_together() -> None:
    logits = torch.tensor([0.0, 1.0, 1.0, 1.0, 2.0])
    labels = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0])
    weights = torch.tensor([5.0, 4.0, 2.0, 0.0, 1.0])
    curve = calibration_curve(logits, labels, weights, num_bins=2)
    # The total weight is 12; the ties span 5 to 11, across the edge at 6, with their middle above it.
    assert curve.num_rows.tolist() == [1, 3]
    assert curve.positive_rate.tolist() == pytest.approx([0, 5 / 7])
    p = torch.tensor([1.0, 2.0], dtype=torch.float64).sigmoid().tolist()
    assert curve.mean_prediction.tolist() == pytest.approx([0.5, (6 * p[0] + p[1]) / 7])


@given(st.floats(-15, 15), st.floats(-15, 15))
def test_conditional_logits_give_the_quotient(logit: float, previous: float) -> None:
    ratio = (1 + math.exp(-previous)) / (1 + math.exp(-logit))
    value = conditional_logits(torch.tensor([logit], dtype=torch.float64), torch.tensor([previous]).double())
    assert value.sigmoid().item() == pytest.approx(min(ratio, 1), rel=1e-6)
    assert value.item() < 27.7


def test_conditional_logits_keep_the_digits_of_small_probabilities() -> None:
    logits, previous = torch.tensor([-50.0, -500.0, 40.0]), torch.tensor([-48.0, -500.5, 41.0])
    value = conditional_logits(logits, previous)
    assert value[0].item() == pytest.approx(-2 - math.log1p(-math.exp(-2)), rel=1e-12)
    assert value[1].sigmoid().item() == pytest.approx(1 - 1e-12, abs=1e-15)  # capped: p_t is above p_{t-1}
    assert value[2].sigmoid().item() == pytest.approx(1 - 1e-12, abs=1e-15)
    assert value.isfinite().all()


def test_wrong_arguments_raise() -> None:
    two = torch.zeros(2)
    for metric in (log_loss, normalized_entropy, calibration, calibration_curve):
        with pytest.raises(InputError, match=r"`logits` must be finite, but entry \[1\] is nan"):
            metric(torch.tensor([0.0, math.nan]), two)
    with pytest.raises(InputError, match=r"`num_bins` \(=0\) must be at least 1"):
        calibration_curve(two, two, num_bins=0)
    with pytest.raises(InputError, match=r"`previous_logits` must have shape \[2\], not \[3\]"):
        conditional_logits(two, torch.zeros(3))
