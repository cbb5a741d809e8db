"""The losses' terms: logits ``[B, T]``, labels ``[B, T]`` in {0, 1}, weights ``[B, T]`` or none, to a scalar.

Every term is a sum over tasks and a mean over the batch's ``B`` rows, as the papers have it. A weight multiplies
its label's term and does not change the ``B`` that is divided by, so that the mean over ranks with equal batches is
the mean over the whole; weight 0 masks the label, and the pairs that it is part of.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_over_rows(terms: Tensor, weights: Tensor | None) -> Tensor:
    """Sum over tasks, mean over rows. A masked term is dropped rather than multiplied, whatever its label holds."""
    if weights is not None:
        terms = torch.where(weights == 0, 0.0, terms * weights)
    return terms.sum() / max(terms.shape[0], 1)


def known_labels(labels: Tensor, weights: Tensor | None) -> Tensor:
    """Labels with 0 where masked: a masked one may be NaN, and would reach the gradient through a product with 0."""
    return labels if weights is None else torch.where(weights == 0, 0.0, labels)


def _pair_weights(weights: Tensor | None) -> Tensor | None:
    """Weights of neighbouring tasks' pairs, ``[B, T - 1]``: the product of both tasks'."""
    return None if weights is None else weights[:, :-1] * weights[:, 1:]


def cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, task_weights: Tensor | None = None
) -> Tensor:
    """``sum_t w_t BCE_t``: BPCM eq. (11), the first sum of TAFE eq. (25).

    Args:
        logits: ``[B, T]``.
        labels: ``[B, T]``.
        weights: ``[B, T]``, none for 1.
        task_weights: ``w [T]``, none for 1.

    Example::

        >>> cross_entropy(torch.zeros(3, 2), torch.ones(3, 2))  # 2 log 2
        tensor(1.3863)
    """
    terms = F.binary_cross_entropy_with_logits(logits, known_labels(labels, weights), reduction="none")
    return mean_over_rows(terms if task_weights is None else terms * task_weights, weights)


def calibrator(logits: Tensor, weights: Tensor | None = None) -> Tensor:
    """``sum_{t>=2} max(p_t - p_{t-1}, 0)``: BPCM eq. (12), AITM's behavioural expectation calibrator.

    A penalty where a task is held likelier than the one it needs. The paper prints it with a minus sign and an
    index past the last task.

    Example::

        >>> calibrator(torch.tensor([[-1.0, 1.0]])), calibrator(torch.tensor([[1.0, -1.0]]))
        (tensor(0.4621), tensor(0.))
    """
    return mean_over_rows(logits.sigmoid().diff(dim=1).relu(), _pair_weights(weights))


def dependence(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """``sum_{t>=2} ((p_{t-1} - p_t) - (o_{t-1} - o_t))^2``: the second sum of TAFE eq. (25) with (29), on
    probabilities.

    Example::

        >>> dependence(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))  # p equal, labels differ
        tensor(1.)
    """
    differences = known_labels(labels, weights).diff(dim=1)
    return mean_over_rows((logits.sigmoid().diff(dim=1) - differences).square(), _pair_weights(weights))


def step_propensity(logits: Tensor, labels: Tensor, min_propensity: float = 1e-3) -> Tensor:
    """``P(y_{t-1} = 1 | x, y_t)``, the denominator of TAFE eq. (10)'s weight, from marginal logits.

    1 where task ``t`` happened, which needs the former; ``(p_{t-1} - p_t) / (1 - p_t)`` where it did not. No
    gradient flows through it.

    Args:
        logits: ``[B, T]``, marginal.
        labels: ``[B, T]``.
        min_propensity: the least value, which bounds the weights. Where the step before is rarer than this, the
            clipping takes weight from its negatives: a bias for less variance.

    Returns:
        ``[B, T]`` in [``min_propensity``, 1]; 1 for the first task, which has none before it.
    """
    # (p_{t-1} - p_t) / (1 - p_t) = 1 - (1 - p_{t-1}) / (1 - p_t), where 1 - p may underflow but its log does not
    ratio = -torch.expm1(-F.logsigmoid(-logits.detach()).diff(dim=1))
    propensity = torch.where(labels[:, 1:] == 1, 1.0, ratio.clamp(min_propensity, 1.0))
    return torch.cat([torch.ones_like(logits[:, :1]), propensity], dim=1)


def local_space_bce(logits: Tensor, labels: Tensor, propensities: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross entropy of each task over the rows where the step before happened, made unbiased: TAFE theorem 2.1.

    Equals `cross_entropy` over all rows in expectation. ``P(Y = 1)`` of eq. (10) is the share of such rows in the
    batch, so the sum over them is divided by all ``B`` rows.

    Args:
        logits: ``[B, T]``.
        labels: ``[B, T]``.
        propensities: ``P(y_{t-1} = 1 | x, y_t) [B, T]``, above 0; see `step_propensity`. The first column is not read.
        weights: ``[B, T]``, none for 1.

    Example::

        >>> labels = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
        >>> local_space_bce(torch.zeros(2, 2), labels, torch.ones(2, 2))  # (2 log 2 + log 2) / 2
        tensor(1.0397)
    """
    labels = known_labels(labels, weights)
    terms = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    inside = torch.cat([torch.ones_like(terms[:, :1]), labels[:, :-1] / propensities[:, 1:]], dim=1)
    if weights is not None:
        inside = inside * torch.cat([weights[:, :1], weights[:, 1:] * (weights[:, :-1] != 0)], dim=1)
    return mean_over_rows(terms, inside)
