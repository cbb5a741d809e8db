"""Terms of losses: from logits ``[B, T]``, labels ``[B, T]`` and optional weights ``[B, T]`` to a scalar.

Labels are 0 or 1, or for `cross_entropy` anything in between, such as the probabilities of a teacher:
a label of 0.3 is worth a row of weight 0.3 with label 1 and one of weight 0.7 with label 0.

Terms that compare a task with the task it needs take ``edges``, the ``E`` pairs of positions ``(parent, child)`` from
`torchrec_mtl.tasks.TaskForest.edges`. The papers have a chain, whose edges are ``(t - 1, t)``.

Every term is a sum over tasks and a mean over the ``B`` rows of the batch, as in the papers. A weight multiplies the
term of its label. The sum is still divided by ``B``, so that the mean over ranks with equal batches equals the mean
over all rows. A pair of tasks counts with the child's weight. Weight 0 masks a label and every pair that the label
belongs to. So a row of weight 2 adds what two equal rows add, and a row of weight 0 adds nothing.

Logits, labels and weights must have one shape: a column ``[B, 1]`` would be broadcast to something else than meant.
To `torch.fx` a term is one call, as it cannot trace what depends on a shape or on whether there are weights.

Raises:
    InputError: from every term, if a tensor has another shape than the logits, or an edge is no pair of tasks.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrec_mtl.errors import InputError, check_positive_share

Edges = Sequence[tuple[int, int]]


def check_tensor(name: str, value: object) -> None:
    """Raises `InputError` unless ``value`` is a tensor."""
    if not isinstance(value, Tensor):
        raise InputError(f"`{name}` (a {type(value).__name__}) must be a tensor")


def check_edges(edges: Edges, num_tasks: int) -> None:
    """Raises `InputError` unless each edge is a pair of positions of two of the tasks.

    Example::

        >>> check_edges([(0, 2)], num_tasks=2)
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `edges` (=[(0, 2)]) must be pairs (parent, child) of positions below 2
    """
    pairs = isinstance(edges, list | tuple) and all(isinstance(edge, list | tuple) and len(edge) == 2 for edge in edges)
    if not pairs or not all(type(place) is int and 0 <= place < num_tasks for edge in edges for place in edge):
        raise InputError(f"`edges` (={edges!r:.60}) must be pairs (parent, child) of positions below {num_tasks}")


def check_shapes(logits: Tensor, **others: Tensor | None) -> None:
    """Raises `InputError` unless the logits are ``[B, T]`` and each of ``others`` that is given has their shape.

    Example::

        >>> check_shapes(torch.zeros(3, 2), labels=torch.zeros(3, 2), weights=torch.ones(3, 1))
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `weights` (of shape [3, 1]) must have one row a sample and one column a task, \
like the logits: [3, 2]
    """
    check_tensor("logits", logits)
    if logits.dim() != 2:
        raise InputError(f"`logits` (of shape {list(logits.shape)}) must be [B, T], one column a task")
    for name, other in others.items():
        if other is None:
            continue
        check_tensor(name, other)
        if other.shape != logits.shape:
            raise InputError(
                f"`{name}` (of shape {list(other.shape)}) must have one row a sample and one column a task, "
                f"like the logits: {list(logits.shape)}"
            )


def check_propensities(propensities: Tensor, num_rows: int, edges: Edges) -> None:
    """Raises `InputError` unless there is a propensity ``[B, E]`` for every row and edge."""
    check_tensor("propensities", propensities)
    if propensities.shape != (num_rows, len(edges)):
        given, expected = list(propensities.shape), [num_rows, len(edges)]
        raise InputError(
            f"`propensities` (of shape {given}) must have one column a task that needs another: {expected}"
        )


def columns(x: Tensor, positions: Sequence[int]) -> Tensor:
    """Returns the columns of ``[B, T]`` at ``positions``; a view if they are consecutive, as in a chain.

    It does not use an index tensor, which would have to be copied to the device at every step.
    """
    if positions and list(positions) == list(range(positions[0], positions[-1] + 1)):
        return x[:, positions[0] : positions[-1] + 1]
    return torch.stack([x[:, place] for place in positions], dim=1) if positions else x[:, :0]


def parents_and_children(x: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
    """Returns the columns of the parents and of the children, ``[B, E]`` each."""
    return columns(x, [parent for parent, _ in edges]), columns(x, [child for _, child in edges])


def step(x: Tensor, edges: Edges) -> Tensor:
    """Returns ``x_t - x_{t'}`` for every edge, ``[B, E]``: the child's column minus the parent's."""
    parents, children = parents_and_children(x, edges)
    return children - parents


def mean_over_rows(terms: Tensor, weights: Tensor | None) -> Tensor:
    """Sums over tasks and averages over rows. A masked term is dropped, so its label may hold any value."""
    if weights is not None:
        terms = torch.where(weights == 0, 0.0, terms * weights)
    return terms.sum() / max(terms.shape[0], 1)


def weigh_tasks(terms: Tensor, task_weights: Tensor | None) -> Tensor:
    """Multiplies terms ``[B, T]`` by the weights of the tasks, ``[T]``.

    Raises:
        InputError: if there is not one weight per column.
    """
    if task_weights is None:
        return terms
    check_tensor("task_weights", task_weights)
    if task_weights.shape != terms.shape[1:]:
        raise InputError(
            f"`logits` (of shape {list(terms.shape)}) must have {task_weights.numel()} columns, one a task"
        )
    return terms * task_weights


def known_labels(labels: Tensor, weights: Tensor | None) -> Tensor:
    """Returns the labels with 0 where masked: a masked NaN would reach the gradient even when multiplied by 0."""
    return labels if weights is None else torch.where(weights == 0, 0.0, labels)


def pair_weights(weights: Tensor, edges: Edges) -> Tensor:
    """Returns the weights of the pairs, ``[B, E]``: the child's, and 0 where the parent is masked."""
    parents, children = parents_and_children(weights, edges)
    return children * (parents != 0)


@torch.fx.wrap
def cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, task_weights: Tensor | None = None
) -> Tensor:
    """``sum_t w_t BCE_t``: BPCM eq. (11), TAFE eq. (23), also the first sum of TAFE eq. (25).

    Args:
        logits: marginal logits, ``[B, T]``.
        labels: labels in [0, 1], ``[B, T]``.
        weights: weights of the labels, ``[B, T]``; 1 by default.
        task_weights: weights of the tasks, ``w [T]``; 1 by default.

    Raises:
        InputError: if the shapes differ, or there is not one task weight per column.

    Example::

        >>> cross_entropy(torch.zeros(3, 2), torch.ones(3, 2))  # 2 log 2
        tensor(1.3863)
    """
    check_shapes(logits, labels=labels, weights=weights)
    terms = F.binary_cross_entropy_with_logits(logits, known_labels(labels, weights), reduction="none")
    return mean_over_rows(weigh_tasks(terms, task_weights), weights)


@torch.fx.wrap
def calibrator(logits: Tensor, edges: Edges, weights: Tensor | None = None) -> Tensor:
    """``sum_{t>=2} max(p_t - p_{t-1}, 0)``: BPCM eq. (12), AITM's behavioural expectation calibrator.

    It penalises a task that is predicted to be likelier than the task it needs. The paper prints it with a minus sign
    and an index beyond the last task.

    Example::

        >>> calibrator(torch.tensor([[-1.0, 1.0]]), [(0, 1)]), calibrator(torch.tensor([[1.0, -1.0]]), [(0, 1)])
        (tensor(0.4621), tensor(0.))
    """
    check_shapes(logits, weights=weights)
    check_edges(edges, logits.shape[1])
    return mean_over_rows(
        step(logits.sigmoid(), edges).relu(), None if weights is None else pair_weights(weights, edges)
    )


@torch.fx.wrap
def dependence(logits: Tensor, labels: Tensor, edges: Edges, weights: Tensor | None = None) -> Tensor:
    """``sum_{t>=2} ((p_{t-1} - p_t) - (o_{t-1} - o_t))^2`` on probabilities: the second sum of TAFE eq. (25), with the
    squared error of TAFE eq. (29).

    Example::

        >>> dependence(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), [(0, 1)])  # p equal, labels differ
        tensor(1.)
    """
    check_shapes(logits, labels=labels, weights=weights)
    check_edges(edges, logits.shape[1])
    differences = step(logits.sigmoid(), edges) - step(known_labels(labels, weights), edges)
    pairs = None if weights is None else pair_weights(weights, edges)
    return mean_over_rows(differences.square(), pairs)


@torch.fx.wrap
def step_propensity(logits: Tensor, labels: Tensor, edges: Edges, min_propensity: float = 1e-3) -> Tensor:
    """Computes ``P(y_{t-1} = 1 | x, y_t)``, the denominator of the weight in TAFE eq. (10), from marginal logits.

    It is 1 where task ``t`` happened, because the task needs the previous one, and ``(p_{t-1} - p_t) / (1 - p_t)``
    where it did not. No gradient flows through it.

    Args:
        logits: marginal logits, ``[B, T]``.
        labels: labels in {0, 1}, ``[B, T]``.
        edges: the ``E`` pairs of tasks.
        min_propensity: smallest value returned, which bounds the weights. Where the previous step is rarer than this,
            clipping takes weight from its negatives: some bias for less variance.

    Returns:
        ``[B, E]`` in [``min_propensity``, 1].
    """
    check_shapes(logits, labels=labels)
    check_edges(edges, logits.shape[1])
    check_positive_share(min_propensity=min_propensity)
    # (p_{t-1} - p_t) / (1 - p_t) = 1 - (1 - p_{t-1}) / (1 - p_t), where 1 - p may underflow but its log does not
    ratio = -torch.expm1(-step(F.logsigmoid(-logits.detach()), edges))
    _, happened = parents_and_children(labels, edges)
    return torch.where(happened == 1, 1.0, ratio.clamp(min_propensity, 1.0))


@torch.fx.wrap
def local_space_bce(
    logits: Tensor, labels: Tensor, propensities: Tensor, edges: Edges, weights: Tensor | None = None
) -> Tensor:
    """Unbiased cross entropy of each task over the rows where the previous step happened: TAFE theorem 2.1.

    In expectation it equals `cross_entropy` over all rows. ``P(Y = 1)`` in eq. (10) is the share of the rows where the
    previous step happened, so the sum over these rows is divided by all ``B`` rows.

    Args:
        logits: marginal logits, ``[B, T]``.
        labels: labels in {0, 1}, ``[B, T]``.
        propensities: ``P(y_{t-1} = 1 | x, y_t) [B, E]``, above 0; see `step_propensity`.
        edges: the ``E`` pairs of tasks; the cross entropy of a task that needs no other is over all rows.
        weights: weights of the labels, ``[B, T]``; 1 by default.

    Example::

        >>> labels = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
        >>> local_space_bce(torch.zeros(2, 2), labels, torch.ones(2, 1), [(0, 1)])  # (2 log 2 + log 2) / 2
        tensor(1.0397)
    """
    check_shapes(logits, labels=labels, weights=weights)
    check_edges(edges, logits.shape[1])
    check_propensities(propensities, len(logits), edges)
    labels = known_labels(labels, weights)  # so a row whose parent is masked is outside
    terms = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    happened, _ = parents_and_children(labels, edges)
    inside = list(torch.ones_like(terms).unbind(1))
    for place, (_, child) in enumerate(edges):
        inside[child] = happened[:, place] / propensities[:, place]
    space = torch.stack(inside, dim=1)
    return mean_over_rows(terms, space if weights is None else space * weights)


@torch.fx.wrap
def difference_propensity(logits: Tensor, labels: Tensor, edges: Edges, min_propensity: float = 1e-3) -> Tensor:
    """Computes ``P(y_{t-1} = 1 | x, y_{t-1} - y_t)``, of the weight in TAFE eq. (26)-(27), from marginal logits.

    It is 1 where the difference is 1, that is where the previous step happened and task ``t`` did not, and
    ``p_t / (1 - p_{t-1} + p_t)`` where it is 0. No gradient flows through it.

    Args:
        logits: marginal logits, ``[B, T]``.
        labels: labels in {0, 1}, ``[B, T]``.
        edges: the ``E`` pairs of tasks.
        min_propensity: smallest value returned, which bounds the weights. Where task ``t`` is rarer than this, clipping
            takes weight from the rows in which it happened, which stand for those outside the local space.

    Returns:
        ``[B, E]`` in [``min_propensity``, 1].

    Example::

        >>> difference_propensity(torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [1.0, 1.0]]), [(0, 1)])
        tensor([[1.0000],
                [0.5000]])
    """
    check_shapes(logits, labels=labels)
    check_edges(edges, logits.shape[1])
    check_positive_share(min_propensity=min_propensity)
    parents, children = parents_and_children(logits.detach(), edges)
    ratio = (F.logsigmoid(children) - F.logsigmoid(-parents)).sigmoid()
    return torch.where(step(labels, edges) == 0, ratio.clamp(min_propensity, 1.0), 1.0)


@torch.fx.wrap
def local_space_dependence(
    logits: Tensor, labels: Tensor, propensities: Tensor, edges: Edges, weights: Tensor | None = None
) -> Tensor:
    """Unbiased dependence loss over the rows where the previous step happened: TAFE theorem 3.1.

    In expectation it equals `dependence` over all rows, where task ``t`` can happen in every x. As in
    `local_space_bce`, the sum over the local space is divided by all ``B`` rows.

    Args:
        logits: marginal logits, ``[B, T]``.
        labels: labels in {0, 1}, ``[B, T]``.
        propensities: ``P(y_{t-1} = 1 | x, y_{t-1} - y_t) [B, E]``, above 0; see `difference_propensity`.
        edges: the ``E`` pairs of tasks.
        weights: weights of the labels, ``[B, T]``; 1 by default.

    Example::

        >>> labels = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
        >>> local_space_dependence(torch.zeros(2, 2), labels, torch.ones(2, 1), [(0, 1)])  # (1 - 0)^2 / 2
        tensor(0.5000)
    """
    check_shapes(logits, labels=labels, weights=weights)
    check_edges(edges, logits.shape[1])
    check_propensities(propensities, len(logits), edges)
    labels = known_labels(labels, weights)
    happened, _ = parents_and_children(labels, edges)
    differences = step(logits.sigmoid(), edges) - step(labels, edges)
    pairs = None if weights is None else pair_weights(weights, edges)
    return mean_over_rows(differences.square() * happened / propensities, pairs)


@torch.fx.wrap
def check_conditional(logits: Tensor, conditional_logits: Tensor) -> None:
    """Raises an `InputError` unless there is a conditional logit for every logit."""
    check_shapes(logits, conditional_logits=conditional_logits)


@torch.fx.wrap
def exit_depth(logits: Tensor, labels: Tensor, edges: Edges, weights: Tensor | None = None) -> Tensor:
    """``-log P`` of where rows leave the funnel: in a chain ``-log (p_{t-1} - p_t)`` where ``t`` is the first step that
    did not happen, ``p_0 = 1``, and ``-log p_T`` where all did.

    With ``p_t = c_t p_{t-1}`` that is the cross entropy of each conditional probability ``c_t`` over the rows where the
    previous step happened. So it is computed, and in a tree it is the likelihood of all labels together.

    Args:
        logits: conditional logits, of ``c_t``, ``[B, T]``.
        labels: labels in {0, 1}, ``[B, T]``.
        edges: the ``E`` pairs of tasks.
        weights: weights of the labels, ``[B, T]``; 1 by default.

    Example::

        >>> labels = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
        >>> exit_depth(torch.zeros(2, 2), labels, [(0, 1)])  # (-log(1/2 - 1/4) - log(1 - 1/2)) / 2
        tensor(1.0397)
    """
    check_shapes(logits, labels=labels, weights=weights)
    check_edges(edges, logits.shape[1])
    return local_space_bce(logits, labels, logits.new_ones(len(logits), len(edges)), edges, weights)
