"""Metrics of predicted classes. All read the logarithms of their probabilities, and sum in float64."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError
from torchrec_mtl.metrics.parts import Parts
from torchrec_mtl.metrics.rows import WeightedRows, checked_values


def _sums(
    error: Callable[[WeightedRows], Tensor], log_probabilities: Tensor, labels: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Returns the sum of a weighted number for each row, and of the weights."""
    if log_probabilities.dim() != 2 or not log_probabilities.shape[1]:
        raise InputError(f"`log_probabilities` (of shape {list(log_probabilities.shape)}) must be [N, C]")
    num_classes = log_probabilities.shape[1]
    rows = checked_values(log_probabilities, labels, weights, num_classes)
    wrong = (rows.labels < 0) | (rows.labels >= num_classes) | (rows.labels != rows.labels.round())
    if wrong.any():
        found = f"{rows.labels[wrong][0].item():g}"
        raise InputError(f"`labels` must be classes, from 0 to {num_classes - 1}, but one is {found}")
    return torch.stack([(rows.weights * error(rows).double()).sum(), rows.weights.sum()])


def _mean(parts: Tensor) -> float:
    errors, weight = parts.sum(0).tolist()
    return errors / weight if weight else math.nan


def _is_right(rows: WeightedRows) -> Tensor:
    return rows.scores.argmax(1) == rows.labels


def _log_loss(rows: WeightedRows) -> Tensor:
    return -rows.scores.gather(1, rows.labels.long()[:, None])[:, 0]


def _apart(rows: WeightedRows) -> Tensor:
    return (_middle(rows) - rows.labels).abs()


def _middle(rows: WeightedRows) -> Tensor:
    """Returns the lowest class of which at most half of the probability is above."""
    return (rows.scores.double().exp().cumsum(1)[:, :-1] < 0.5).sum(1)


ACCURACY = Parts(partial(_sums, _is_right), _mean)
CLASS_LOG_LOSS = Parts(partial(_sums, _log_loss), _mean)
CLASS_MAE = Parts(partial(_sums, _apart), _mean)


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
