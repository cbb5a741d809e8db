"""Metrics of predicted classes. All read the logarithms of their probabilities, and sum in float64."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError
from torchrec_mtl.metrics.parts import Parts
from torchrec_mtl.metrics.rows import WeightedRows, checked_values


def _mean_of(error: Callable[[WeightedRows], Tensor]) -> Parts:
    """Returns a metric that is the weighted mean of a number for each row."""

    def of_rows(log_probabilities: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        if log_probabilities.dim() != 2 or not log_probabilities.shape[1]:
            raise InputError(f"`log_probabilities` (of shape {list(log_probabilities.shape)}) must be [N, C]")
        num_classes = log_probabilities.shape[1]
        rows = checked_values(log_probabilities, labels, weights, num_classes)
        wrong = (rows.labels < 0) | (rows.labels >= num_classes) | (rows.labels != rows.labels.round())
        if wrong.any():
            found = f"{rows.labels[wrong][0].item():g}"
            raise InputError(f"`labels` must be classes, from 0 to {num_classes - 1}, but one is {found}")
        return torch.stack([(rows.weights * error(rows).double()).sum(), rows.weights.sum()])

    def mean(parts: Tensor) -> float:
        errors, weight = parts.sum(0).tolist()
        return errors / weight if weight else math.nan

    return Parts(of_rows, mean)


def _middle(rows: WeightedRows) -> Tensor:
    """Returns the lowest class of which at most half of the probability is above."""
    return (rows.scores.double().exp().cumsum(1)[:, :-1] < 0.5).sum(1)


ACCURACY = _mean_of(lambda rows: rows.scores.argmax(1) == rows.labels)
CLASS_LOG_LOSS = _mean_of(lambda rows: -rows.scores.gather(1, rows.labels.long()[:, None])[:, 0])
CLASS_MAE = _mean_of(lambda rows: (_middle(rows) - rows.labels).abs())


@checked
def class_accuracy(log_probabilities: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Share of the rows whose most probable class is theirs; of equally probable ones, the first.

    Args:
        log_probabilities: logarithms of the classes' probabilities, ``[N, C]``.
        labels: positions of the classes, ``[N]``.
        weights: weights of the rows, ``[N]``, at least 0; 1 by default.

    Returns:
        The share, higher is better; NaN if no row has a weight above 0.

    Raises:
        InputError: if a number is NaN or infinite, a label is no class, a weight is negative, or shapes differ.

    Example::

        >>> class_accuracy(torch.tensor([[0.9, 0.1], [0.8, 0.2]]).log(), torch.tensor([0, 1]))
        0.5
    """
    return ACCURACY(log_probabilities, labels, weights)


@checked
def class_log_loss(log_probabilities: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Mean of minus the logarithm of the probability of each row's class, in nats.

    For arguments and errors, see :func:`class_accuracy`.

    Returns:
        The loss, lower is better; NaN if no row has a weight above 0.

    Example::

        >>> round(class_log_loss(torch.tensor([[0.5, 0.5], [0.8, 0.2]]).log(), torch.tensor([0, 0])), 4)
        0.4581
    """
    return CLASS_LOG_LOSS(log_probabilities, labels, weights)


@checked
def class_mae(log_probabilities: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Mean number of classes between each row's and the median of those predicted, for classes that have an order.

    For arguments and errors, see :func:`class_accuracy`.

    Returns:
        The error, lower is better; NaN if no row has a weight above 0.

    Example::

        >>> class_mae(torch.tensor([[0.4, 0.2, 0.4]] * 2).log(), torch.tensor([0, 1]))
        0.5
    """
    return CLASS_MAE(log_probabilities, labels, weights)
