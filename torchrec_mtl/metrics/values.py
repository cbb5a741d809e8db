"""Metrics of predicted values and quantiles. All sum in float64."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least
from torchrec_mtl.metrics.parts import Parts
from torchrec_mtl.metrics.probability import CalibrationCurve, binned
from torchrec_mtl.metrics.ranks import Ranks
from torchrec_mtl.metrics.rows import WeightedRows, checked_values

NUM_BINS = 10
_LEAST_GINI = 1e-9  # of labels that differ; below is what rounding leaves of equal ones


def _squared(rows: WeightedRows) -> Tensor:
    return (rows.scores.double() - rows.labels) ** 2


def _absolute(rows: WeightedRows) -> Tensor:
    return (rows.scores.double() - rows.labels).abs()


def _sums(
    error: Callable[[WeightedRows], Tensor],
    num_columns: int | None,
    predictions: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """Returns the sum of the weighted errors of rows, and of the weights."""
    rows = checked_values(predictions, labels, weights, num_columns)
    return torch.stack([(rows.weights * error(rows)).sum(), rows.weights.sum()])


def _mean(parts: Tensor) -> float:
    errors, weight = parts.sum(0).tolist()
    return errors / weight if weight else math.nan


def _root(parts: Tensor) -> float:
    return math.sqrt(_mean(parts))


def _predicted_and_observed(predictions: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    rows = checked_values(predictions, labels, weights)
    return torch.stack([(rows.weights * of).sum() for of in (rows.scores.double(), rows.labels)])


def _quotient(parts: Tensor) -> float:
    predicted, observed = parts.sum(0).tolist()
    return predicted / observed if observed > 0 else math.nan


def _pinball(rows: WeightedRows) -> Tensor:
    predictions, levels = rows.scores.double().unbind(1)
    above = rows.labels - predictions
    return torch.maximum(levels * above, (levels - 1) * above)


def _area(predictions: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Returns, of the rows of a range of predictions, twice the area below the Lorenz curve, the weight and the sum."""
    rows = checked_values(predictions, labels, weights)
    cell = torch.unique(rows.scores, return_inverse=True)[1]
    weight, total = torch.bincount(cell, rows.weights), torch.bincount(cell, rows.weights * rows.labels)
    area = (weight * (2 * total.cumsum(0) - total)).sum()
    return torch.stack([area, weight.sum(), total.sum()]).double()


def _gini(parts: Tensor) -> float:
    area, weight, total = parts.unbind(1)
    below = total.cumsum(0) - total  # of the lower ranges
    whole = float((area + 2 * weight * below).sum() / weight.sum() / total.sum())
    return 1 - whole if total.sum() > 0 else math.nan


class _Normalized(Parts):
    """The Gini coefficient of the labels in the order of the predictions, divided by that in their order."""

    def __call__(self, *columns: Tensor | None) -> float:
        _, labels, *rest = columns
        return _divided(super().__call__(*columns), super().__call__(labels, labels, *rest))

    def over(self, ranks: Ranks, *columns: Tensor) -> float:
        _, labels, *rest = columns
        return _divided(super().over(ranks, *columns), super().over(ranks, labels, labels, *rest))


def _divided(value: float, best: float) -> float:
    return value / best if best > _LEAST_GINI else math.nan


class _Lift(Parts):
    """The mean label of the last bin, divided by that of all rows."""

    def __call__(self, *columns: Tensor | None) -> float:
        return self._lift(checked_values(*columns), lambda sums: sums)  # type: ignore[arg-type]

    def over(self, ranks: Ranks, *columns: Tensor) -> float:
        predictions, labels, weights = columns
        return self._lift(checked_values(predictions, labels, weights), ranks.sum)

    def _lift(self, rows: WeightedRows, total: Callable[[Tensor], Tensor]) -> float:
        observed, weight = total(torch.stack([(rows.weights * rows.labels).sum(), rows.weights.sum()])).tolist()
        if not observed > 0:
            return math.nan
        curve = binned(rows, rows.scores.double(), NUM_BINS, total)
        return float(curve.positive_rate[-1]) * weight / observed


RMSE = Parts(partial(_sums, _squared, None), _root)
MAE = Parts(partial(_sums, _absolute, None), _mean)
VALUE_CALIBRATION = Parts(_predicted_and_observed, _quotient)
PINBALL = Parts(partial(_sums, _pinball, 2), _mean)
GINI = _Normalized(_area, _gini, by="value")
LIFT = _Lift(_area, _gini, by="value")


@checked
def rmse(predictions: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Root of the weighted mean of squared errors.

    Args:
        predictions: predicted values, ``[N]``.
        labels: values, ``[N]``.
        weights: weights of the rows, ``[N]``, at least 0; 1 by default.

    Returns:
        The error, in the unit of the value, lower is better; NaN if no row has a weight above 0.

    Raises:
        InputError: if a prediction or label is NaN or infinite, a weight is negative or not finite, or shapes differ.

    Example::

        >>> rmse(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 6.0]))
        3.5355339059327378
    """
    return RMSE(predictions, labels, weights)


@checked
def mae(predictions: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Weighted mean of absolute errors; for arguments and errors, see :func:`rmse`.

    Example::

        >>> mae(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 6.0]))
        3.5
    """
    return MAE(predictions, labels, weights)


@checked
def value_calibration(predictions: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Sum of the predictions divided by the sum of the labels: above 1 promises too much.

    For arguments and errors, see :func:`rmse`.

    Returns:
        The ratio, nearer to 1 is better; NaN if the labels do not sum to more than 0.

    Example::

        >>> value_calibration(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 6.0]))
        0.5
    """
    return VALUE_CALIBRATION(predictions, labels, weights)


@checked
def gini(predictions: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Normalised Gini coefficient: how well predictions rank rows by value, 1 for the order of the labels.

    It is the area between the diagonal and the Lorenz curve of the labels, in the order of the predictions, divided by
    that in the order of the labels (Wang et al., 2019, section 5). Tied predictions share their labels' mean. Of labels
    that are 0 or 1 it is ``2 AUC - 1``. For arguments and errors, see :func:`rmse`.

    Returns:
        The coefficient, higher is better; NaN if the labels are all equal or do not sum to more than 0.

    Example::

        >>> round(gini(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 9.0, 1.0])), 4)
        0.1111
    """
    return GINI(predictions, labels, weights)


@checked
def lift(predictions: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Mean label of the tenth of the rows with the highest predictions, divided by the mean of all.

    Rows with one prediction stay together, see :func:`torchrec_mtl.metrics.calibration_curve`; the other tenths are in
    `value_curve`. For arguments and errors, see :func:`rmse`.

    Returns:
        The lift, higher is better; NaN if the labels do not sum to more than 0.

    Example::

        >>> lift(torch.arange(10.0), torch.tensor([0.0, 0, 0, 0, 0, 0, 0, 0, 5, 5]))
        5.0
    """
    return LIFT(predictions, labels, weights)


@checked
def value_curve(
    predictions: Tensor, labels: Tensor, weights: Tensor | None = None, num_bins: int = NUM_BINS
) -> CalibrationCurve:
    """Mean prediction and mean label in bins of equal weight, by rising prediction: calibration, and lift by decile.

    ``positive_rate`` is the mean label. For arguments and errors, see :func:`rmse`.

    Example::

        >>> value_curve(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 6.0]), num_bins=2).positive_rate.tolist()
        [0.0, 6.0]
    """
    check_at_least(1, num_bins=num_bins)
    rows = checked_values(predictions, labels, weights)
    return binned(rows, rows.scores.double(), num_bins, lambda sums: sums)


@checked
def pinball(predictions: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Weighted mean of the pinball losses of predicted quantiles: for the level ``q``, ``max(q e, (q - 1) e)``.

    Args:
        predictions: predicted quantile and level of each row, ``[N, 2]``; rows of several levels may stand together.
        labels: values, ``[N]``.
        weights: weights of the rows, ``[N]``, at least 0; 1 by default.

    Returns:
        The loss, in the unit of the value, lower is better; NaN if no row has a weight above 0.

    Raises:
        InputError: as :func:`rmse` does.

    Example::

        >>> pinball(torch.tensor([[1.0, 0.9], [5.0, 0.9]]), torch.tensor([3.0, 3.0]))  # (1.8 + .2) / 2
        1.0
    """
    return PINBALL(predictions, labels, weights)
