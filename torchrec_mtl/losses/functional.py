"""The losses' terms: logits ``[B, T]``, labels ``[B, T]`` in {0, 1}, weights ``[B, T]`` or none, to a scalar.

Terms of a task and the one that it needs take ``edges``, the ``E`` pairs of positions ``(parent, child)`` of
`torchrec_mtl.tasks.TaskForest.edges`. The papers have a chain, whose edges are ``(t - 1, t)``.

Every term is a sum over tasks and a mean over the batch's ``B`` rows, as the papers have it. A weight multiplies
its label's term and does not change the ``B`` that is divided by, so that the mean over ranks with equal batches is
the mean over the whole; weight 0 masks the label, and the pairs that it is part of.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Edges = Sequence[tuple[int, int]]


def columns(x: Tensor, positions: Sequence[int]) -> Tensor:
    """The columns of ``[B, T]`` at ``positions``; a view where they follow each other, as in a chain.

    Not by an index: it would have to be copied to the device at every step.
    """
    if positions and list(positions) == list(range(positions[0], positions[-1] + 1)):
        return x[:, positions[0] : positions[-1] + 1]
    return torch.stack([x[:, place] for place in positions], dim=1) if positions else x[:, :0]


def parents_and_children(x: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
    """The columns of the tasks needed and of those that need them, ``[B, E]`` each."""
    return columns(x, [parent for parent, _ in edges]), columns(x, [child for _, child in edges])


def step(x: Tensor, edges: Edges) -> Tensor:
    """``x_t - x_{t'}`` over the edges, ``[B, E]``: what changes from the task needed to the one that needs it."""
    parents, children = parents_and_children(x, edges)
    return children - parents


def mean_over_rows(terms: Tensor, weights: Tensor | None) -> Tensor:
    """Sum over tasks, mean over rows. A masked term is dropped rather than multiplied, whatever its label holds."""
    if weights is not None:
        terms = torch.where(weights == 0, 0.0, terms * weights)
    return terms.sum() / max(terms.shape[0], 1)


def known_labels(labels: Tensor, weights: Tensor | None) -> Tensor:
    """Labels with 0 where masked: a masked one may be NaN, and would reach the gradient through a product with 0."""
    return labels if weights is None else torch.where(weights == 0, 0.0, labels)


def _pair_weights(weights: Tensor | None, edges: Edges) -> Tensor | None:
    """Weights of the pairs, ``[B, E]``: the product of both tasks'."""
    if weights is None:
        return None
    parents, children = parents_and_children(weights, edges)
    return parents * children


def cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, task_weights: Tensor | None = None
) -> Tensor:
    """``sum_t w_t BCE_t``: BPCM eq. (11), TAFE eq. (23), which is the first sum of TAFE eq. (25).

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


def calibrator(logits: Tensor, edges: Edges, weights: Tensor | None = None) -> Tensor:
    """``sum_{t>=2} max(p_t - p_{t-1}, 0)``: BPCM eq. (12), AITM's behavioural expectation calibrator.

    A penalty where a task is held likelier than the one it needs. The paper prints it with a minus sign and an
    index past the last task.

    Example::

        >>> calibrator(torch.tensor([[-1.0, 1.0]]), [(0, 1)]), calibrator(torch.tensor([[1.0, -1.0]]), [(0, 1)])
        (tensor(0.4621), tensor(0.))
    """
    return mean_over_rows(step(logits.sigmoid(), edges).relu(), _pair_weights(weights, edges))


def dependence(logits: Tensor, labels: Tensor, edges: Edges, weights: Tensor | None = None) -> Tensor:
    """``sum_{t>=2} ((p_{t-1} - p_t) - (o_{t-1} - o_t))^2``: the second sum of TAFE eq. (25), as TAFE eq. (29)
    closes it, on probabilities.

    Example::

        >>> dependence(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), [(0, 1)])  # p equal, labels differ
        tensor(1.)
    """
    differences = step(logits.sigmoid(), edges) - step(known_labels(labels, weights), edges)
    return mean_over_rows(differences.square(), _pair_weights(weights, edges))


def step_propensity(logits: Tensor, labels: Tensor, edges: Edges, min_propensity: float = 1e-3) -> Tensor:
    """``P(y_{t-1} = 1 | x, y_t)``, the denominator of TAFE eq. (10)'s weight, from marginal logits.

    1 where task ``t`` happened, which needs the former; ``(p_{t-1} - p_t) / (1 - p_t)`` where it did not. No
    gradient flows through it.

    Args:
        logits: ``[B, T]``, marginal.
        labels: ``[B, T]``.
        edges: ``E`` pairs.
        min_propensity: the least value, which bounds the weights. Where the step before is rarer than this, the
            clipping takes weight from its negatives: a bias for less variance.

    Returns:
        ``[B, E]`` in [``min_propensity``, 1].
    """
    # (p_{t-1} - p_t) / (1 - p_t) = 1 - (1 - p_{t-1}) / (1 - p_t), where 1 - p may underflow but its log does not
    ratio = -torch.expm1(-step(F.logsigmoid(-logits.detach()), edges))
    _, happened = parents_and_children(labels, edges)
    return torch.where(happened == 1, 1.0, ratio.clamp(min_propensity, 1.0))


def local_space_bce(
    logits: Tensor, labels: Tensor, propensities: Tensor, edges: Edges, weights: Tensor | None = None
) -> Tensor:
    """Cross entropy of each task over the rows where the step before happened, made unbiased: TAFE theorem 2.1.

    Equals `cross_entropy` over all rows in expectation. ``P(Y = 1)`` of eq. (10) is the share of such rows in the
    batch, so the sum over them is divided by all ``B`` rows.

    Args:
        logits: ``[B, T]``.
        labels: ``[B, T]``.
        propensities: ``P(y_{t-1} = 1 | x, y_t) [B, E]``, above 0; see `step_propensity`.
        edges: ``E`` pairs; a task that needs no other has its cross entropy over all rows.
        weights: ``[B, T]``, none for 1.

    Example::

        >>> labels = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
        >>> local_space_bce(torch.zeros(2, 2), labels, torch.ones(2, 1), [(0, 1)])  # (2 log 2 + log 2) / 2
        tensor(1.0397)
    """
    labels = known_labels(labels, weights)
    terms = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    happened, _ = parents_and_children(labels, edges)
    inside = list(torch.ones_like(terms).unbind(1))
    for place, (parent, child) in enumerate(edges):
        inside[child] = happened[:, place] / propensities[:, place]
        if weights is not None:
            inside[child] = inside[child] * (weights[:, parent] != 0)
    space = torch.stack(inside, dim=1)
    return mean_over_rows(terms, space if weights is None else space * weights)
