"""Metrics of how well scores rank positives above negatives: exact, without bins; a tie counts one half."""

import math
from itertools import chain

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least
from torchrec_mtl.metrics.parts import Parts
from torchrec_mtl.metrics.rows import WeightedRows, check_groups, checked_rows

_SUSPICIOUS_MARGIN = 0.005


def _class_weights(rows: WeightedRows, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the weight of the positives and of the negatives in each cell of tied rows."""
    positives = torch.bincount(cell, rows.weights * rows.labels)
    return positives, torch.bincount(cell, rows.weights * (1 - rows.labels))


def _auc_part(scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Returns the area above the negatives of this range of scores, and the weights of its positives and negatives."""
    rows = checked_rows(scores, labels, weights)
    positives, negatives = _class_weights(rows, torch.unique(rows.scores, return_inverse=True)[1])
    area = (positives * (negatives.cumsum(0) - negatives / 2)).sum()
    return torch.stack([area, positives.sum(), negatives.sum()])


def _auc_value(parts: Tensor) -> float:
    area, positives, negatives = parts.unbind(1)
    below = pad(negatives.cumsum(0)[:-1], (1, 0))  # negatives of the lower ranges
    return float((area + positives * below).sum() / positives.sum() / negatives.sum())


AUC = Parts(_auc_part, _auc_value, by="score")


@checked
def auc(scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Area under the ROC curve: the chance that a positive outscores a negative, a tie counting one half.

    It is exact for any number of rows, in ``O(N log N)``: the rows are sorted, never binned. Without weights, or with
    integer weights, the order of the rows does not change a single bit of the result; with other weights, it changes
    the result by at most 1e-12.

    Args:
        scores: scores, ``[N]``. Any increasing function of the probability works; prefer the logits, because a float32
            sigmoid rounds large logits to ties.
        labels: labels in {0, 1}, ``[N]``.
        weights: weights of the rows, ``[N]``, at least 0; a pair counts the product of its rows' weights. 1 by default.

    Returns:
        The AUC, higher is better; NaN if a class has no row of weight above 0.

    Raises:
        InputError: if a score is NaN or infinite, a label is neither 0 nor 1, a weight is negative or not finite, or
            shapes differ.

    Example::

        >>> auc(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0, 0, 1, 1]))
        0.875
    """
    return AUC(scores, labels, weights)


def _starts(values: Tensor) -> Tensor:
    """Returns whether each entry of a non-empty column starts a run of equal entries."""
    return pad(values[1:] != values[:-1], (1, 0), value=True)


def _cumsum_by_group(values: Tensor, group: Tensor) -> Tensor:
    """Returns running sums that restart with each run of equal ``group``.

    It works by doubling: subtracting the total before each group from one running sum would lose the digits of groups
    with little weight.
    """
    total, shift, longest = values.clone(), 1, int(torch.bincount(group).max())
    while shift < longest:
        total[shift:] += torch.where(group[shift:] == group[:-shift], total[:-shift], 0.0)
        shift *= 2
    return total


def _exact_sum(terms: Tensor) -> list[float]:
    """Returns three numbers whose exact sum is that of the terms, so that no order of the terms changes a bit of it."""
    values, found = terms.tolist(), list[float]()
    for _ in range(3):
        found.append(math.fsum(chain(values, (-each for each in found))))
    return found


def _gauc_part(scores: Tensor, labels: Tensor, groups: Tensor, weights: Tensor | None = None) -> Tensor:
    """Returns the sum of the AUCs of groups times their impressions, as three numbers, and that of the impressions."""
    rows = checked_rows(scores, labels, weights)
    check_groups(groups, len(scores))
    groups = groups if weights is None else groups[weights != 0]
    if not len(groups):
        return torch.zeros(4, dtype=torch.float64)
    order = rows.scores.argsort()
    order = order[groups[order].argsort(stable=True)]
    rows, groups = WeightedRows(*(column[order] for column in rows)), groups[order]
    new_group = _starts(groups)
    new_cell = new_group | _starts(rows.scores)
    positives, negatives = _class_weights(rows, new_cell.cumsum(0) - 1)
    group = new_group.cumsum(0)[new_cell] - 1  # the group of each cell of tied rows
    area = torch.bincount(group, positives * (_cumsum_by_group(negatives, group) - negatives / 2))
    positives, negatives = torch.bincount(group, positives), torch.bincount(group, negatives)
    both = (positives > 0) & (negatives > 0)
    impressions = (positives + negatives)[both]
    weighted = (area / positives / negatives)[both] * impressions
    return torch.tensor([*_exact_sum(weighted), impressions.sum()], dtype=torch.float64)


def _gauc_value(parts: Tensor) -> float:
    impressions = float(parts[:, 3].sum())
    return math.fsum(parts[:, :3].flatten().tolist()) / impressions if impressions else math.nan


GAUC = Parts(_gauc_part, _gauc_value, by="group")


@checked
def gauc(scores: Tensor, labels: Tensor, groups: Tensor, weights: Tensor | None = None) -> float:
    """Group AUC: the AUC inside each group (usually a user), averaged with the groups' impressions as weights.

    A group counts with its number of rows or, given weights, with the sum of its rows' weights, which also count inside
    its AUC. A group without a positive or without a negative has no AUC, and all its rows are left out of the average.
    It is as exact as :func:`auc`. Source: Zhu et al., "Optimized Cost per Click in Taobao Display Advertising", KDD
    2017.

    Args:
        scores: scores, ``[N]``, as in :func:`auc`.
        labels: labels in {0, 1}, ``[N]``.
        groups: integer ids of the groups, ``[N]``; rows of a group need not be adjacent.
        weights: weights of the rows, ``[N]``, at least 0; 1 by default.

    Returns:
        The group AUC, higher is better; NaN if no group has both classes.

    Raises:
        InputError: as in :func:`auc`, and if ``groups`` are not integers.

    Example::

        >>> scores, labels = torch.tensor([0.3, 0.2, 0.9, 0.8, 0.7]), torch.tensor([1, 0, 0, 1, 0])
        >>> gauc(scores, labels, groups=torch.tensor([7, 7, 9, 9, 9]))
        0.7
    """
    return GAUC(scores, labels, groups, weights)


@checked
def rela_impr(auc: float, auc_base: float) -> float:
    """BPCM eq. (14): relative change of the AUC above chance, ``(auc - 0.5) / (auc_base - 0.5) - 1``.

    BPCM's base is the single-task MLP. The result is NaN if the base is not above 0.5.

    Example::

        >>> round(rela_impr(0.6192, 0.6035), 4)
        0.1517
    """
    return (auc - 0.5) / (auc_base - 0.5) - 1 if auc_base > 0.5 else math.nan


@checked
def gain(auc: float, auc_base: float) -> float:
    """TAFE table 2: relative change of the AUC, ``auc / auc_base - 1``, as a fraction.

    TAFE's base is Single-Task. The result is NaN if the base is not above 0.

    Example::

        >>> round(gain(0.6436, 0.6011), 4)
        0.0707
    """
    return auc / auc_base - 1 if auc_base > 0 else math.nan


@checked
def suspicious(auc: float, positives: float, negatives: float) -> str | None:
    """Returns one sentence if an AUC hints at a mistake in the data or the training, else None.

    The hints are a class without rows, or an AUC within 0.005 of 0.5 (a dead model) or of 1 (a leaked label).

    Example::

        >>> suspicious(0.5, positives=120, negatives=9880)
        'AUC 0.5000 (120 positives, 9880 negatives) is that of chance: the model may have learnt nothing'
        >>> suspicious(0.62, positives=120, negatives=9880)
    """
    check_at_least(0, positives=positives, negatives=negatives)
    rows = f"({positives:.0f} positives, {negatives:.0f} negatives)"
    if not (positives and negatives):
        return f"AUC is undefined without both classes {rows}"
    if abs(auc - 0.5) <= _SUSPICIOUS_MARGIN:
        return f"AUC {auc:.4f} {rows} is that of chance: the model may have learnt nothing"
    if auc >= 1 - _SUSPICIOUS_MARGIN:
        return f"AUC {auc:.4f} {rows} is nearly perfect: a feature may give the label away"
    return None
