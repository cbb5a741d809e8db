"""How true predicted probabilities are. All take logits, so that nothing saturates, and sum in float64."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from torchrec_mtl.errors import InputError
from torchrec_mtl.metrics.rows import check_shape, checked_rows

_LARGEST_CONDITIONAL = 1 - 1e-12  # the clamp of torchrec.metrics.ne


def log_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Mean binary cross entropy in nats, weighted: BPCM eq. (11) for one task.

    Args:
        logits: ``[N]``.
        labels: ``[N]`` in {0, 1}.
        weights: ``[N]``, at least 0; 1 by default.

    Returns:
        The log loss, lower is better; NaN where no row has a weight above 0.

    Raises:
        InputError: if a logit is NaN or infinite, a label neither 0 nor 1, a weight negative or not finite,
            or shapes differ.

    Example::

        >>> round(log_loss(torch.tensor([0.0, 1000.0, -1000.0]), torch.tensor([1, 1, 0])), 4)
        0.231
    """
    rows = checked_rows(logits, labels, weights, "logits")
    losses = -logsigmoid((2 * rows.labels - 1) * rows.scores)
    return float((rows.weights * losses).sum() / rows.weights.sum())


def normalized_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Log loss over that of always predicting the base rate: below 1 is better than the base rate.

    Source: He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook", ADKDD 2014. The base
    rate is that of these very rows. Arguments and errors as :func:`log_loss`.

    Returns:
        The normalised entropy, lower is better; NaN where one of the classes has no row of weight above 0.

    Example::

        >>> normalized_entropy(torch.tensor([0.0, 0.0]), torch.tensor([1, 0]))
        1.0
    """
    rows = checked_rows(logits, labels, weights, "logits")
    classes = torch.stack([rows.weights * rows.labels, rows.weights * (1 - rows.labels)]).sum(1)
    rarer = classes.min() / classes.sum()  # from the commoner one, 1 - rate would lose its digits
    entropy = float(torch.special.entr(rarer) - (1 - rarer) * torch.log1p(-rarer))
    return log_loss(logits, labels, weights) / entropy if entropy > 0 else math.nan


def calibration(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Sum of the predicted probabilities over the sum of the labels: 1 is right, above 1 predicts too many.

    Arguments and errors as :func:`log_loss`.

    Returns:
        The ratio, nearer to 1 is better; NaN where no positive has a weight above 0.

    Example::

        >>> calibration(torch.tensor([0.0, 0.0, 0.0]), torch.tensor([1, 0, 0]))
        1.5
    """
    rows = checked_rows(logits, labels, weights, "logits")
    observed = float((rows.weights * rows.labels).sum())
    predicted = float((rows.weights * rows.scores.double().sigmoid()).sum())
    return predicted / observed if observed > 0 else math.nan


class CalibrationCurve(NamedTuple):
    """A reliability diagram, one entry a bin ``[num_bins]``, by rising prediction."""

    mean_prediction: Tensor
    positive_rate: Tensor
    num_rows: Tensor


def calibration_curve(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, num_bins: int = 10
) -> CalibrationCurve:
    """Predicted against observed rate in bins of equal weight (equal rows, without weights).

    Rows of one prediction share a bin, the one where the middle of their weight falls, so the curve does not
    depend on the order of rows; bins that get none are left out. The means are weighted, ``num_rows`` is not.
    Other arguments and errors as :func:`log_loss`.

    Raises:
        InputError: also if ``num_bins`` is not above 0.

    Example::

        >>> logits, labels = torch.tensor([-2.0, -1.0, 1.0, 2.0]), torch.tensor([0, 0, 0, 1])
        >>> curve = calibration_curve(logits, labels, num_bins=2)
        >>> [column.tolist() for column in curve[1:]]
        [[0.0, 0.5], [2, 2]]
    """
    if num_bins < 1:
        raise InputError(f"`num_bins` (={num_bins}) must be above 0")
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


def conditional_logits(logits: Tensor, previous_logits: Tensor) -> Tensor:
    """The logit of ``min(p_t / p_{t-1}, 1)``: a task given that the step before happened.

    ``p_t / p_{t-1}`` is ``P(y_t = 1 | y_{t-1} = 1)`` because a label implies the one before. It is taken
    between logarithms, so small probabilities keep their digits. A model need not keep ``p_t <= p_{t-1}``: a
    ratio above ``1 - 1e-12`` is cut to it, so such a row costs at most 27.6 nats, not an infinite log loss.

    Args:
        logits: ``[N]`` marginal logits of task ``t``.
        previous_logits: ``[N]`` of task ``t - 1``.

    Returns:
        Float64 logits ``[N]``.

    Raises:
        InputError: if the shapes differ.

    Example::

        >>> click, purchase = torch.tensor(0.2).logit(), torch.tensor(0.05).logit()
        >>> conditional_logits(purchase, click).sigmoid()
        tensor(0.2500, dtype=torch.float64)
    """
    check_shape(previous_logits, tuple(logits.shape), "previous_logits")
    log_ratio = logsigmoid(logits.double()) - logsigmoid(previous_logits.double())
    log_ratio = log_ratio.clamp(max=math.log(_LARGEST_CONDITIONAL))
    return log_ratio - torch.log(-torch.expm1(log_ratio))
