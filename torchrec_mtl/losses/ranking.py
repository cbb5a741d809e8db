"""Losses that compare the rows of a group, such as a user's or a session's, beside the cross entropy of each row.

``groups``, int64 ``[B]``, are the batch's: the values of the data's group column. Only rows of one batch of one rank
are compared, so unlike with other losses, a run depends on the number of ranks and on `micro_batches`. Rows come in a
random order, so of a group of ``n`` of ``N`` rows about ``n B / N`` are in a batch of ``B``: larger batches, or coarser
groups, compare more.

A weight counts rows here too: a row of weight 2 is in twice as many comparisons, and a masked one is in none.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError, check_at_least, check_share
from torchrec_mtl.losses import functional
from torchrec_mtl.losses.functional import check_shapes, check_tensor, known_labels, mean_over_rows, weigh_tasks
from torchrec_mtl.losses.modules import TaskWeightedLoss
from torchrec_mtl.tasks import TaskForest


def _numbered(groups: Tensor, logits: Tensor) -> tuple[Tensor, int]:
    """Returns the number of each row's group, ``[B]``, and how many groups there are."""
    check_tensor("groups", groups)
    if groups.shape != logits.shape[:1]:
        raise InputError(f"`groups` (of shape {list(groups.shape)}) must have one group a row: [{len(logits)}]")
    if groups.is_floating_point() or groups.is_complex():
        raise InputError(f"`groups` (of {groups.dtype}) must be integers")
    found, numbers = groups.unique(return_inverse=True)
    return numbers, len(found)


def _by_group(x: Tensor, numbers: Tensor, num_groups: int) -> Tensor:
    """Returns the sums over each group, ``[G, T]``."""
    return x.new_zeros(num_groups, x.shape[1]).index_add(0, numbers, x)


@torch.fx.wrap
def pairwise(
    logits: Tensor, labels: Tensor, groups: Tensor, weights: Tensor | None = None, task_weights: Tensor | None = None
) -> Tensor:
    """``sum_g 1/n_g sum_ij y_i (1 - y_j) log(1 + exp(s_j - s_i))`` over the rows ``i, j`` of each group, divided by
    ``B``.

    Each pair is RankNet's (Burges et al., ICML 2005). ``n_g`` is the number of the group's rows, or their weight: it
    does not depend on labels, so that the expected term is least where ``s_i - s_j`` is the difference of the true
    logits.

    Args:
        logits: logits ``s``, ``[B, T]``.
        labels: labels ``y``, ``[B, T]``.
        groups: groups of the rows, integers ``[B]``.
        weights: weights of the labels, ``[B, T]``; 1 by default. A pair has the product of both.
        task_weights: weights of the tasks, ``[T]``; 1 by default.

    Raises:
        InputError: if a shape is another, or the groups are no integers.

    Example::

        >>> labels = torch.tensor([[1.0], [0.0], [0.0]])
        >>> pairwise(torch.zeros(3, 1), labels, torch.tensor([7, 7, 8]))  # one pair, of a group of 2: log 2 / 2 / 3
        tensor(0.1155)
    """
    check_shapes(logits, labels=labels, weights=weights)
    numbers, num_groups = _numbered(groups, logits)
    labels, of_rows = known_labels(labels, weights), torch.ones_like(logits) if weights is None else weights
    scores = torch.where(of_rows == 0, 0.0, logits)
    sizes = _by_group(of_rows, numbers, num_groups)
    shares = of_rows / torch.where(sizes == 0, 1.0, sizes)[numbers]
    first, second = (numbers[:, None] == numbers).nonzero(as_tuple=True)
    terms = F.softplus(scores[second] - scores[first])
    times = (labels * shares)[first] * ((1 - labels) * of_rows)[second]
    return mean_over_rows(weigh_tasks(_by_group(terms * times, first, len(logits)), task_weights), None)


class PairwiseLoss(TaskWeightedLoss):
    """Cross entropy plus ``pairwise_weight`` times the pairwise loss within groups, `torchrec_mtl.losses.pairwise`.

    The cross entropy alone keeps probabilities right, and the pairs rank a user's rows: "Combined-Pair" in Sheng et
    al., KDD 2023. As both terms are least at the true logits, they do not pull against each other, which is what Bai et
    al., "Regression Compatible Listwise Objectives for Calibrated Ranking", CIKM 2023, ask for.

    On a constant x the minimum is the truth, and so it is where x differs within a group.

    Args:
        tasks: the ``T`` tasks.
        pairwise_weight: weight of the pairwise loss.
        task_weights: weights that multiply both terms of a task, one per task; 1 by default.

    Raises:
        InputError: if there is not one weight per task, or a weight is negative.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> loss = PairwiseLoss(TaskChain(["click"]))
        >>> loss(torch.zeros(2, 1), torch.tensor([[1.0], [0.0]]), groups=torch.tensor([7, 7]))  # log 2 + log 2 / 4
        tensor(0.8664)
    """

    @checked
    def __init__(
        self, tasks: TaskForest, *, pairwise_weight: float = 1.0, task_weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.set_task_weights(tasks, task_weights)
        check_at_least(0, pairwise_weight=pairwise_weight)
        self.pairwise_weight = pairwise_weight

    def forward(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None, *, groups: Tensor) -> Tensor:
        """Maps logits, labels and weights, ``[B, T]`` each, and groups, integers ``[B]``, to a scalar."""
        cross_entropy = functional.cross_entropy(logits, labels, weights, self.task_weights)
        return cross_entropy + self.pairwise_weight * pairwise(logits, labels, groups, weights, self.task_weights)


def _log_share(scores: Tensor, weights: Tensor, numbers: Tensor, num_groups: int) -> Tensor:
    """Returns ``s_i - log mean_k exp(s_k)`` over the rows ``k`` of the group of ``i``, ``[B, T]``."""
    scores = torch.where(weights == 0, 0.0, scores)
    known = scores.detach().masked_fill(weights == 0, -torch.inf)
    largest = known.new_full((num_groups, scores.shape[1]), -torch.inf)
    largest = largest.scatter_reduce(0, numbers[:, None].expand_as(known), known, "amax")
    scores = scores - torch.where(largest == -torch.inf, 0.0, largest)[numbers]
    sums, sizes = (_by_group(x, numbers, num_groups) for x in (weights * scores.exp(), weights))
    means = torch.where(sizes == 0, 1.0, sums) / torch.where(sizes == 0, 1.0, sizes)
    return scores - means.log()[numbers]


@torch.fx.wrap
def listwise(
    logits: Tensor,
    labels: Tensor,
    groups: Tensor,
    weights: Tensor | None = None,
    task_weights: Tensor | None = None,
    other_logits: Tensor | None = None,
) -> Tensor:
    """The generative loss of JRC, ``-log p(x | y, z)``: ``-log exp(f_i[y_i]) / mean_k exp(f_k[y_i])`` over the rows
    ``k`` of the group of ``i``.

    The paper has the sum in the place of the mean, which adds a constant and no gradient, but would make the loss of a
    row depend on the unit of the weights.

    Args:
        logits: logits, ``f[1] - f[0]``, ``[B, T]``.
        labels: labels ``y``, ``[B, T]``.
        groups: groups of the rows, integers ``[B]``.
        weights: weights of the labels, ``[B, T]``; 1 by default.
        task_weights: weights of the tasks, ``[T]``; 1 by default.
        other_logits: ``f[0]``, ``[B, T]``; 0 by default.

    Raises:
        InputError: if a shape is another, or the groups are no integers.

    Example::

        >>> logits, labels = torch.tensor([[3.0], [1.0]]).log(), torch.tensor([[1.0], [0.0]])
        >>> listwise(logits, labels, torch.tensor([7, 7]))  # -log 3 / 2, over 2 rows
        tensor(-0.2027)
    """
    check_shapes(logits, labels=labels, weights=weights, other_logits=other_logits)
    numbers, num_groups = _numbered(groups, logits)
    labels, of_rows = known_labels(labels, weights), torch.ones_like(logits) if weights is None else weights
    f0 = torch.zeros_like(logits) if other_logits is None else other_logits
    positives = _log_share(f0 + logits, of_rows, numbers, num_groups)
    negatives = _log_share(f0, of_rows, numbers, num_groups)
    terms = -(labels * positives + (1 - labels) * negatives)
    return mean_over_rows(weigh_tasks(terms, task_weights), weights)


class JRCLoss(TaskWeightedLoss):
    """JRC (Sheng et al., "Joint Optimization of Ranking and Calibration with Contextualized Hybrid Model", KDD 2023):
    ``alpha`` times the cross entropy plus ``1 - alpha`` times `torchrec_mtl.losses.listwise`.

    The context ``z`` of the paper is the group. The whole batch is none: its rows are of different users, and comparing
    these is what the context is there to avoid.

    The paper's model has two outputs a task, ``f[0]`` and ``f[1]``, and ``p = sigmoid(f[1] - f[0])``. The models of
    this library have one, the logit ``f[1] - f[0]``. With these ``f[0]`` is 0: only the rows where the task happened
    are ranked, the paper's baseline "Combined-List". A model of yours that also offers ``other_logits``, ``f[0] [B,
    T]``, gives the paper's.

    On a constant x the minimum is the truth. Where x differs within a group, it is the truth with ``other_logits``.
    Without them it is so for rare events alone, as the listwise term is least at ``log p``: by default, of two rows a
    group with probabilities .1 and .2 these come out as .1036 and .1964, and .01 and .02 as .01003
    and .01997.

    Args:
        tasks: the ``T`` tasks.
        alpha: share of the cross entropy. The paper leaves it to be searched; 0.5 as in EasyRec.
        task_weights: weights that multiply both terms of a task, one per task; 1 by default.

    Raises:
        InputError: if ``alpha`` is not between 0 and 1, there is not one weight per task, or a weight is negative.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> loss = JRCLoss(TaskChain(["click"]))
        >>> loss(torch.zeros(2, 1), torch.tensor([[1.0], [0.0]]), groups=torch.tensor([7, 7]))  # log 2 / 2
        tensor(0.3466)
    """

    @checked
    def __init__(self, tasks: TaskForest, *, alpha: float = 0.5, task_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.set_task_weights(tasks, task_weights)
        check_share(alpha=alpha)
        self.alpha = alpha

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        weights: Tensor | None = None,
        *,
        groups: Tensor,
        other_logits: Tensor | None = None,
    ) -> Tensor:
        """Maps logits, labels and weights, ``[B, T]`` each, groups, integers ``[B]``, and perhaps ``f[0] [B, T]``, to
        a scalar."""
        cross_entropy = functional.cross_entropy(logits, labels, weights, self.task_weights)
        generative = listwise(logits, labels, groups, weights, self.task_weights, other_logits)
        return self.alpha * cross_entropy + (1 - self.alpha) * generative
