"""Metrics of predicted probabilities. All take logits, so that nothing saturates, and sum in float64."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least
from torchrec_mtl.metrics.parts import Parts
from torchrec_mtl.metrics.ranges import edges, ordered_keys
from torchrec_mtl.metrics.rows import WeightedRows, check_shape, checked_rows

_LARGEST_CONDITIONAL = 1 - 1e-12  # the clamp of torchrec.metrics.ne


def _losses(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Returns the sum of the weighted losses, and the weights of the positives and of the negatives."""
    rows = checked_rows(logits, labels, weights, "logits")
    losses = -logsigmoid((2 * rows.labels - 1) * rows.scores)
    of_classes = [(rows.weights * of_class).sum() for of_class in (rows.labels, 1 - rows.labels)]
    return torch.stack([(rows.weights * losses).sum(), *of_classes])


def _mean_loss(parts: Tensor) -> float:
    losses, *of_classes = parts.sum(0)
    return float(losses / sum(of_classes))


def _normalized(parts: Tensor) -> float:
    classes = parts.sum(0)[1:]
    rarer = classes.min() / classes.sum()  # the rarer class, because 1 - rate would lose digits
    entropy = float(torch.special.entr(rarer) - (1 - rarer) * torch.log1p(-rarer))
    return _mean_loss(parts) / entropy if entropy > 0 else math.nan


def _predicted_and_observed(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    rows = checked_rows(logits, labels, weights, "logits")
    return torch.stack([(rows.weights * of).sum() for of in (rows.scores.double().sigmoid(), rows.labels)])


def _ratio(parts: Tensor) -> float:
    predicted, observed = parts.sum(0).tolist()
    return predicted / observed if observed > 0 else math.nan


LOG_LOSS = Parts(_losses, _mean_loss)
NORMALIZED_ENTROPY = Parts(_losses, _normalized)
CALIBRATION = Parts(_predicted_and_observed, _ratio)


@checked
def log_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Mean binary cross entropy in nats, weighted: BPCM eq. (11) for one task.

    Args:
        logits: logits, ``[N]``.
        labels: labels in {0, 1}, ``[N]``.
        weights: weights of the rows, ``[N]``, at least 0; 1 by default.

    Returns:
        The log loss, lower is better; NaN if no row has a weight above 0.

    Raises:
        InputError: if a logit is NaN or infinite, a label is neither 0 nor 1, a weight is negative or not finite, or
            shapes differ.

    Example::

        >>> round(log_loss(torch.tensor([0.0, 1000.0, -1000.0]), torch.tensor([1, 1, 0])), 4)
        0.231
    """
    return LOG_LOSS(logits, labels, weights)


@checked
def normalized_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Log loss divided by the log loss of always predicting the base rate: below 1 is better than the base rate.

    Source: He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook", ADKDD 2014. The base rate is taken
    from the given rows. For arguments and errors, see :func:`log_loss`.

    Returns:
        The normalised entropy, lower is better; NaN if a class has no row of weight above 0.

    Example::

        >>> normalized_entropy(torch.tensor([0.0, 0.0]), torch.tensor([1, 0]))
        1.0
    """
    return NORMALIZED_ENTROPY(logits, labels, weights)


@checked
def calibration(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Sum of the predicted probabilities divided by the sum of the labels: above 1 predicts too many positives.

    For arguments and errors, see :func:`log_loss`.

    Returns:
        The ratio, nearer to 1 is better; NaN if no positive has a weight above 0.

    Example::

        >>> calibration(torch.tensor([0.0, 0.0, 0.0]), torch.tensor([1, 0, 0]))
        1.5
    """
    return CALIBRATION(logits, labels, weights)


class CalibrationCurve(NamedTuple):
    """A reliability diagram with one entry per bin, ``[num_bins]``, in order of rising prediction."""

    mean_prediction: Tensor
    positive_rate: Tensor
    num_rows: Tensor


@checked
def calibration_curve(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, num_bins: int = 10
) -> CalibrationCurve:
    """Predicted and observed rates in bins of equal weight (without weights, of equally many rows).

    Rows with the same prediction share the bin in which the middle of their weight falls, so the curve does not depend
    on the order of the rows. Empty bins are left out. The means are weighted; ``num_rows`` is not. For other arguments
    and errors, see :func:`log_loss`.

    Raises:
        InputError: as in :func:`log_loss`, and if ``num_bins`` is not above 0.

    Example::

        >>> logits, labels = torch.tensor([-2.0, -1.0, 1.0, 2.0]), torch.tensor([0, 0, 0, 1])
        >>> curve = calibration_curve(logits, labels, num_bins=2)
        >>> [column.tolist() for column in curve[1:]]
        [[0.0, 0.5], [2, 2]]
    """
    check_at_least(1, num_bins=num_bins)
    return curve_over_ranks(checked_rows(logits, labels, weights, "logits"), num_bins, lambda sums: sums)


def curve_over_ranks(rows: WeightedRows, num_bins: int, total: Callable[[Tensor], Tensor]) -> CalibrationCurve:
    """Returns the curve of the rows of all ranks; ``total`` sums a tensor over them, and all call it."""
    return binned(rows, rows.scores.double().sigmoid(), num_bins, total)


def binned(
    rows: WeightedRows, predictions: Tensor, num_bins: int, total: Callable[[Tensor], Tensor]
) -> CalibrationCurve:
    """Returns the means of predictions ``[N]``, which rise with the scores, and of labels, as `curve_over_ranks`."""
    keys = ordered_keys(rows.scores)
    order = keys.argsort()
    place = torch.bucketize(keys, edges(keys[order], rows.weights[order], num_bins, total))
    columns = (rows.weights, rows.weights * predictions, rows.weights * rows.labels)
    weighted = torch.stack([torch.bincount(place, column, num_bins) for column in columns]).double()
    weight, predicted, observed = total(weighted)
    num_rows = total(torch.bincount(place, minlength=num_bins))
    filled = weight > 0
    return CalibrationCurve((predicted / weight)[filled], (observed / weight)[filled], num_rows[filled])


@checked
def log_conditional(logits: Tensor, previous_logits: Tensor) -> Tensor:
    """Returns ``log p_t - log p_{t-1}``, the score by which conversion rates are ranked.

    It is not clipped at 0: rows on which a model puts ``p_t`` above ``p_{t-1}`` keep their order.

    Args:
        logits: marginal logits of task ``t``, ``[N]``.
        previous_logits: marginal logits of task ``t - 1``, ``[N]``.

    Returns:
        Scores in float64, ``[N]``.

    Raises:
        InputError: if the shapes differ.

    Example::

        >>> log_conditional(torch.tensor([-800.0, 0.0]), torch.tensor([-799.0, -1.0]))
        tensor([-1.0000,  0.6201], dtype=torch.float64)
    """
    check_shape(previous_logits, tuple(logits.shape), "previous_logits")
    return logsigmoid(logits.double()) - logsigmoid(previous_logits.double())


@checked
def conditional_logits(logits: Tensor, previous_logits: Tensor) -> Tensor:
    """Returns the logit of ``min(p_t / p_{t-1}, 1)``: a task given that the previous step happened.

    ``p_t / p_{t-1}`` is ``P(y_t = 1 | y_{t-1} = 1)`` because a positive label implies a positive previous label. The
    ratio is a difference of logarithms, so small probabilities keep their digits. A model need not satisfy
    ``p_t <= p_{t-1}``: a ratio above ``1 - 1e-12`` is clipped to it, so such a row costs at most 27.6 nats instead of
    an infinite log loss.

    Args:
        logits: marginal logits of task ``t``, ``[N]``.
        previous_logits: marginal logits of task ``t - 1``, ``[N]``.

    Returns:
        Logits in float64, ``[N]``.

    Raises:
        InputError: if the shapes differ.

    Example::

        >>> click, purchase = torch.tensor(0.2).logit(), torch.tensor(0.05).logit()
        >>> conditional_logits(purchase, click).sigmoid()
        tensor(0.2500, dtype=torch.float64)
    """
    log_ratio = log_conditional(logits, previous_logits).clamp(max=math.log(_LARGEST_CONDITIONAL))
    return log_ratio - torch.log(-torch.expm1(log_ratio))
