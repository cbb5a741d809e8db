"""The papers' objectives as modules, for `MultiTaskTrain`.

A loss is built from the tasks, ``Loss(tasks, ...)``, and called as ``loss(logits, labels, weights) -> scalar``. If it
reads further outputs of a model, they are keyword-only arguments of its ``forward`` with the names that the model uses:
see `torchrec_mtl.losses.CounterfactualLoss`. A loss may have parameters, which are trained together with the model's.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError, check_at_least, check_positive_share
from torchrec_mtl.losses import functional
from torchrec_mtl.tasks import TaskForest


class TaskWeightedLoss(nn.Module):
    """Base of the losses that have a weight for each task.

    Attributes:
        task_weights: the weights, ``[T]``, or None where all are 1.
    """

    task_weights: Tensor | None

    def set_task_weights(self, tasks: TaskForest, task_weights: Sequence[float] | None) -> None:
        """Registers the weights; for constructors.

        Raises:
            InputError: if a task is a value, there is not one weight per task, or a weight is negative or not finite.
        """
        tasks.require_binary(type(self).__name__)
        if task_weights is not None:
            if len(task_weights) != len(tasks):
                raise InputError(f"`task_weights` (={list(task_weights)}) must be one a task: {list(tasks)}")
            for weight in task_weights:
                check_at_least(0, task_weights=weight)
        self._given = task_weights if task_weights is None else tuple(task_weights)
        # DistributedModelParallel fills a buffer on meta with zeros, and resets only modules that have parameters.
        device = "cpu" if torch.get_default_device().type == "meta" else None
        dtype = torch.get_default_dtype()
        made = None if task_weights is None else torch.tensor(task_weights, dtype=dtype, device=device)
        self.register_buffer("task_weights", made, persistent=False)

    def reset_parameters(self) -> None:
        """Fills in `task_weights` again, after ``to_empty``."""
        if self.task_weights is not None:
            self.task_weights.copy_(torch.tensor(self._given))


class CrossEntropyLoss(TaskWeightedLoss):
    """Weighted sum of the tasks' cross entropies, BPCM eq. (11), TAFE eq. (23).

    On a constant x the minimum is the truth. Labels may be soft, such as the probabilities of a teacher: the minimum is
    then their mean.

    Args:
        tasks: the ``T`` tasks.
        task_weights: weights ``w_t`` of the tasks' cross entropies, one per task; 1 by default.

    Raises:
        InputError: if there is not one weight per task, or a weight is negative.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> loss = CrossEntropyLoss(TaskChain(["click", "purchase"]), task_weights=[1.0, 0.5])
        >>> loss(torch.zeros(3, 2), torch.ones(3, 2))  # 1.5 log 2
        tensor(1.0397)
    """

    @checked
    def __init__(self, tasks: TaskForest, *, task_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.set_task_weights(tasks, task_weights)

    def forward(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Maps logits, labels and weights, ``[B, T]`` each, to a scalar."""
        return functional.cross_entropy(logits, labels, weights, self.task_weights)


class CalibratedLoss(TaskWeightedLoss):
    """Cross entropy plus ``alpha`` times the calibrator, BPCM eq. (13); also AITM's objective.

    On a constant x the minimum is the truth, where the calibrator is 0.

    Args:
        tasks: the ``T`` tasks, some of which need another.
        alpha: weight of the calibrator; BPCM found 0.6 best.
        task_weights: weights ``w_t`` of the tasks' cross entropies, one per task; 1 by default.

    Raises:
        InputError: if there are several tasks and none needs another, there is not one weight per task, or a weight is
            negative.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> loss = CalibratedLoss(TaskChain(["click", "purchase"]))
        >>> loss(torch.zeros(3, 2), torch.ones(3, 2))  # 2 log 2, nothing to calibrate
        tensor(1.3863)
    """

    @checked
    def __init__(self, tasks: TaskForest, *, alpha: float = 0.6, task_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.set_task_weights(tasks, task_weights)
        tasks.require_edges("CalibratedLoss")
        check_at_least(0, alpha=alpha)
        self.edges, self.alpha = tasks.edges, alpha

    def forward(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Maps logits, labels and weights, ``[B, T]`` each, to a scalar."""
        cross_entropy = functional.cross_entropy(logits, labels, weights, self.task_weights)
        return cross_entropy + self.alpha * functional.calibrator(logits, self.edges, weights)


class DependenceLoss(TaskWeightedLoss):
    """Cross entropy plus the dependence loss, TAFE eq. (24), written out in TAFE eq. (25) with TAFE eq. (29).

    On a constant x the minimum is the truth: that of a squared error is the mean.

    Args:
        tasks: the ``T`` tasks, some of which need another.
        dependence_weight: weight of the dependence loss; 1 in the paper, 0 in its ablation "w/o L_D-Task".
        task_weights: weights ``w_t`` of the tasks' cross entropies, one per task; 1 by default.

    Raises:
        InputError: if there are several tasks and none needs another, there is not one weight per task, or a weight is
            negative.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> loss = DependenceLoss(TaskChain(["click", "purchase"]))
        >>> loss(torch.zeros(3, 2), torch.ones(3, 2))  # 2 log 2, both differences are 0
        tensor(1.3863)
    """

    @checked
    def __init__(
        self, tasks: TaskForest, *, dependence_weight: float = 1.0, task_weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.set_task_weights(tasks, task_weights)
        tasks.require_edges("DependenceLoss")
        check_at_least(0, dependence_weight=dependence_weight)
        self.edges, self.dependence_weight = tasks.edges, dependence_weight

    def forward(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Maps logits, labels and weights, ``[B, T]`` each, to a scalar."""
        cross_entropy = functional.cross_entropy(logits, labels, weights, self.task_weights)
        return cross_entropy + self.dependence_weight * functional.dependence(logits, labels, self.edges, weights)


class ExitDepthLoss(TaskWeightedLoss):
    """Cross entropy plus the likelihood of where rows leave the funnel: TAFE eq. (24) with another ``L_D-Task``.

    Eq. (25) leaves its loss of ``p_{i-1} - p_i`` open and eq. (29) closes it as a squared error, whose gradient
    vanishes for rare steps. That of the likelihood ``-log (p_{i-1} - p_i)`` does not, but it needs ``p_i < p_{i-1}`` in
    every row. So the loss reads ``conditional_logits``, which models have that multiply conditional probabilities, and
    no other model takes it. On a constant x the minimum is the truth.

    Args:
        tasks: the ``T`` tasks, some of which need another.
        depth_weight: weight of the likelihood.
        task_weights: weights ``w_t`` of the tasks' cross entropies, one per task; 1 by default.

    Raises:
        InputError: if there are several tasks and none needs another, there is not one weight per task, or a weight is
            negative.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> loss = ExitDepthLoss(TaskChain(["click", "purchase"]))
        >>> loss(torch.zeros(3, 2), torch.ones(3, 2), conditional_logits=torch.zeros(3, 2))  # 4 log 2
        tensor(2.7726)
    """

    @checked
    def __init__(
        self, tasks: TaskForest, *, depth_weight: float = 1.0, task_weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.set_task_weights(tasks, task_weights)
        tasks.require_edges("ExitDepthLoss")
        check_at_least(0, depth_weight=depth_weight)
        self.edges, self.depth_weight = tasks.edges, depth_weight

    def forward(
        self, logits: Tensor, labels: Tensor, weights: Tensor | None = None, *, conditional_logits: Tensor
    ) -> Tensor:
        """Maps logits, labels and weights, ``[B, T]`` each, and conditional logits ``[B, T]`` to a scalar."""
        functional.check_conditional(logits, conditional_logits)
        cross_entropy = functional.cross_entropy(logits, labels, weights, self.task_weights)
        depth = functional.exit_depth(conditional_logits, labels, self.edges, weights)
        return cross_entropy + self.depth_weight * depth


class LocalSpaceLoss(nn.Module):
    """Importance-weighted losses where the previous step happened: cross entropy by TAFE theorem 2.1, and the
    dependence loss by TAFE theorem 3.1.

    The propensities come from the model's marginal probabilities, without gradient. On a constant x training rests at
    the truth if ``s``, the share of rows where the previous step happened among those where the task did not, is at
    least ``min_propensity``. Where it is less, the odds of the task come out ``min_propensity / s`` times too high: at
    a click rate of .001, P(buy | click) = .1 comes out as .111. The dependence loss needs the share of rows where the
    task happened to be as large, among those where both or neither did; where it is less, it pulls both steps apart.

    Args:
        tasks: the ``T`` tasks, some of which need another.
        min_propensity: lower bound of the propensities; its inverse bounds the weights, see
            `torchrec_mtl.losses.step_propensity` and `torchrec_mtl.losses.difference_propensity`.
        dependence_weight: weight of the dependence loss of TAFE eq. (25), over the same rows; 0 leaves it out.

    Raises:
        InputError: if there are several tasks and none needs another, ``min_propensity`` is not in (0, 1], or
            ``dependence_weight`` is negative.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> loss = LocalSpaceLoss(TaskChain(["click", "purchase"]))
        >>> loss(torch.zeros(3, 2), torch.ones(3, 2))  # all rows are in the local space
        tensor(1.3863)
    """

    @checked
    def __init__(self, tasks: TaskForest, *, min_propensity: float = 1e-3, dependence_weight: float = 0.0) -> None:
        super().__init__()
        tasks.require_binary("LocalSpaceLoss")
        tasks.require_edges("LocalSpaceLoss")
        check_positive_share(min_propensity=min_propensity)
        check_at_least(0, dependence_weight=dependence_weight)
        self.edges, self.min_propensity, self.dependence_weight = tasks.edges, min_propensity, dependence_weight

    def forward(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Maps logits, labels and weights, ``[B, T]`` each, to a scalar."""
        propensities = functional.step_propensity(logits, labels, self.edges, self.min_propensity)
        cross_entropy = functional.local_space_bce(logits, labels, propensities, self.edges, weights)
        if not self.dependence_weight:
            return cross_entropy
        propensities = functional.difference_propensity(logits, labels, self.edges, self.min_propensity)
        dependence = functional.local_space_dependence(logits, labels, propensities, self.edges, weights)
        return cross_entropy + self.dependence_weight * dependence
