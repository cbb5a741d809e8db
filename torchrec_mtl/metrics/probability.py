"""Metrics of predicted probabilities. All take logits, so that nothing saturates, and sum in float64."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least
from torchrec_mtl.metrics.rows import check_shape, checked_rows

_LARGEST_CONDITIONAL = 1 - 1e-12  # the clamp of torchrec.metrics.ne


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
    rows = checked_rows(logits, labels, weights, "logits")
    losses = -logsigmoid((2 * rows.labels - 1) * rows.scores)
    return float((rows.weights * losses).sum() / rows.weights.sum())


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
    rows = checked_rows(logits, labels, weights, "logits")
    classes = torch.stack([rows.weights * rows.labels, rows.weights * (1 - rows.labels)]).sum(1)
    rarer = classes.min() / classes.sum()  # the rarer class, because 1 - rate would lose digits
    entropy = float(torch.special.entr(rarer) - (1 - rarer) * torch.log1p(-rarer))
    return log_loss(logits, labels, weights) / entropy if entropy > 0 else math.nan


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
    rows = checked_rows(logits, labels, weights, "logits")
    observed = float((rows.weights * rows.labels).sum())
    predicted = float((rows.weights * rows.scores.double().sigmoid()).sum())
    return predicted / observed if observed > 0 else math.nan


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
    rows = checked_rows(logits, labels, weights, "logits")
    _, cell = torch.unique(rows.scores, return_inverse=True)
    cell_weight = torch.bincount(cell, rows.weights)
    middle = cell_weight.cumsum(0) - cell_weight / 2
    place = ((num_bins * middle / cell_weight.sum()).long()[cell]).clamp(max=num_bins - 1)
    weight = torch.bincount(place, rows.weights)
    predicted = torch.bincount(place, rows.weights * rows.scores.double().sigmoid())
    observed = torch.bincount(place, rows.weights * rows.labels)
    filled = weight > 0
    num_rows = torch.bincount(place)
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
