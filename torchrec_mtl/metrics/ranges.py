"""Ranges of scores that hold equal shares of the rows of all ranks, found without gathering or binning the rows."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

_BITS_AT_ONCE = 4
_LOWEST = -(2**63)


def ordered_keys(scores: Tensor) -> Tensor:
    """Returns an int64 for each score, in the order of the scores; equal scores have equal keys, 0.0 and -0.0 too.

    Example::

        >>> ordered_keys(torch.tensor([-1.0, -0.0, 0.0, 1e-45])).diff().sign()
        tensor([1, 0, 1])
    """
    bits = (scores.double() + 0.0).view(torch.int64)
    return bits ^ ((bits >> 63) & (2**63 - 1))  # among negative numbers, larger bits are a smaller number


def edges(keys: Tensor, weights: Tensor, num_ranges: int, total: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns the edges between ranges of equal weight over the rows of all ranks.

    Equal keys share the range in which the middle of their weight falls, so a range weighs at most one
    ``num_ranges``-th of all, and half of its first and of its last key. The edges are settled four bits at a time from
    the upper to the lower, so they are exact however close the keys are; a rank sends ``16 (num_ranges - 1)`` sums 16
    times.

    Args:
        keys: this rank's :func:`ordered_keys`, rising, ``[N]``; of a finite score, a key is above ``-2^63``.
        weights: weights of the keys, ``[N]``.
        num_ranges: number of ranges.
        total: sums a tensor over the ranks, which all call it.

    Returns:
        Edges ``[num_ranges - 1]``, equal on all ranks; a key is in range ``torch.bucketize(key, edges)``.

    Example::

        >>> keys = torch.tensor([3, 3, 5, 9])
        >>> torch.bucketize(keys, edges(keys, torch.ones(4), 2, total=lambda sums: sums))
        tensor([0, 0, 1, 1])
    """
    below = pad(weights.double().cumsum(0), (1, 0))  # of the first n keys
    all_weight = total(below[-1:])
    found = torch.full((num_ranges - 1, 1), _LOWEST)
    wanted = torch.arange(1, num_ranges)[:, None]
    for shift in range(64 - _BITS_AT_ONCE, -1, -_BITS_AT_ONCE):
        candidates = found + (torch.arange(2**_BITS_AT_ONCE) << shift)
        first, behind = (torch.searchsorted(keys, candidates, right=right) for right in (False, True))
        middle = total(below[first] + below[behind]) / 2
        reached = (num_ranges * middle / all_weight < wanted).sum(1, keepdim=True)
        found = candidates.gather(1, (reached - 1).clamp(min=0))
    return found[:, 0]


def merged(scores: Tensor, labels: Tensor, weights: Tensor) -> list[Tensor]:
    """Returns the rows by rising score, those of equal score and label as one row of the sum of their weights.

    Args:
        scores: ``[N]``.
        labels: ``[N]`` in {0, 1}.
        weights: ``[N]``, above 0.

    Example::

        >>> merged(torch.tensor([2.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 3.0]))[2]
        tensor([1., 4.], dtype=torch.float64)
    """
    distinct, cell = torch.unique(scores, return_inverse=True)
    labels, weights = labels.double(), weights.double()
    of_classes = [torch.bincount(cell, weights * (labels == each), len(distinct)) for each in (0, 1)]
    of_both = torch.stack(of_classes, 1).flatten().double()  # without rows, bincount gives integers
    kept = of_both > 0
    both = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(len(distinct))
    return [distinct.repeat_interleave(2)[kept], both[kept], of_both[kept]]


def averaged(scores: Tensor, labels: Tensor, weights: Tensor) -> list[Tensor]:
    """Returns the rows by rising score, those of equal score as one row of their mean label and the sum of weights.

    Args:
        scores, labels: ``[N]``.
        weights: ``[N]``, above 0.

    Example::

        >>> averaged(torch.tensor([2.0, 1.0, 2.0]), torch.tensor([8.0, 1.0, 4.0]), torch.tensor([1.0, 1.0, 3.0]))[1]
        tensor([1., 5.], dtype=torch.float64)
    """
    distinct, cell = torch.unique(scores, return_inverse=True)
    weights = weights.double()
    of_cell = torch.bincount(cell, weights, len(distinct)).double()  # without rows, bincount gives integers
    return [distinct, torch.bincount(cell, weights * labels.double(), len(distinct)) / of_cell, of_cell]
