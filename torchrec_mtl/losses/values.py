"""The losses of tasks that are values, beside the loss of a funnel.

A value counts where its label has weight and the task that it comes after happened, and as in the other losses its
terms are summed and divided by all ``B`` rows. It is measured in units of the training labels' deviation, so that a
loss is about 1 for a model that predicts their mean, as a cross entropy is: squared errors of raw money would drown
those. `MultiTaskTrain` and the jobs do all of this by themselves.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError, check_at_least
from torchrec_mtl.kinds import ZILN, Classes, Huber, Kind, Quantile
from torchrec_mtl.losses.functional import check_tensor, mean_over_rows
from torchrec_mtl.modules.heads import LabelStatistics, log_probabilities
from torchrec_mtl.tasks import TaskForest


def value_loss(kind: Kind, outputs: Tensor, labels: Tensor, unit: Tensor | float = 1.0) -> Tensor:
    """The loss of each row, ``[B]``, with ``z = (label - output) / unit``.

    - `SquaredError`: ``z^2``.
    - `Huber`: ``z^2 / 2`` where ``|z| <= delta``, else ``delta (|z| - delta / 2)``.
    - `Quantile`: the mean over the levels ``q`` of ``max(q z, (q - 1) z)``.
    - `Classes` and `Ordinal`: minus the logarithm of the probability of the label's class.
    - `ZILN`: Wang et al. eq. (2): the cross entropy of whether the label is above 0, and there minus the log-normal
      log density of the label, in raw units. The density may be above 1, and so the loss below 0.

    On a constant x the minimum is the truth: the mean for the squared error and the ZILN's mean (of log-normal
    labels), the quantile for the pinball loss, the shares of classes. Huber's is a mean that counts labels further than
    ``delta`` as if they were at that distance.

    Args:
        kind: kind of the task.
        outputs: outputs of its head, ``[B, num_outputs]``.
        labels: labels, ``[B]``.
        unit: unit of the value.

    Example::

        >>> value_loss(Quantile((0.5, 0.9)), torch.tensor([[1.0, 3.0]]), torch.tensor([2.0]))  # (.5 + .1) / 2
        tensor([0.3000])
    """
    if isinstance(kind, ZILN):
        logit, mu, sigma = outputs.unbind(1)
        positive = labels > 0
        log = torch.where(positive, labels, 1.0).log()
        density = log + sigma.log() + 0.5 * math.log(2 * math.pi) + ((log - mu) / sigma) ** 2 / 2
        above = F.binary_cross_entropy_with_logits(logit, positive.to(logit), reduction="none")
        return above + torch.where(positive, density, 0.0)
    if isinstance(kind, Classes):
        return -log_probabilities(kind, outputs).gather(1, labels.long()[:, None])[:, 0]
    z = (labels[:, None] - outputs) / unit
    if isinstance(kind, Huber):
        return F.huber_loss(z, torch.zeros_like(z), reduction="none", delta=kind.delta)[:, 0]
    if isinstance(kind, Quantile):
        return torch.stack(
            [torch.maximum(q * e, (q - 1) * e) for q, e in zip(kind.levels, z.unbind(1), strict=True)]
        ).mean(0)
    return z[:, 0] ** 2


def value_weights(tasks: TaskForest, labels: Tensor, weights: Tensor | None, task: int) -> Tensor:
    """The weights ``[B]`` with which the labels ``[B, T]`` of a value count: 0 where the task before did not happen.

    Example::

        >>> from torchrec_mtl import Task
        >>> tasks = TaskForest(Task("buy"), Task("spend", after="buy", kind=ZILN()))
        >>> value_weights(tasks, torch.tensor([[1.0, 9.5], [0.0, 0.0]]), None, 1)
        tensor([1., 0.])
    """
    weights = torch.ones_like(labels) if weights is None else weights
    return torch.where(tasks.counted(task, labels == 1, weights != 0), weights[:, task], 0.0)


class FunnelAndValues(nn.Module):
    """The loss of a funnel, plus the weighted losses of the tasks that are values.

    Args:
        funnel: loss of ``tasks.funnel``, such as those of `torchrec_mtl.losses`; None if all tasks are values.
        tasks: the ``T`` tasks.
        task_weights: weight of each value's loss, in their order; 1 by default.

    Attributes:
        units: deviation of the training labels of each value, ``[V]``; 1 until `start`.

    Raises:
        InputError: if there is not one weight for each value, one is negative, or ``funnel`` is given for no task or
            missing for some.

    Example::

        >>> from torchrec_mtl import SquaredError, Task
        >>> from torchrec_mtl.losses import CrossEntropyLoss
        >>> tasks = TaskForest(Task("buy"), Task("spend", after="buy", kind=SquaredError()))
        >>> loss = FunnelAndValues(CrossEntropyLoss(tasks.funnel), tasks)
        >>> loss(torch.zeros(2, 2), torch.tensor([[1.0, 3.0], [0.0, 0.0]]))  # log 2 + 9 / 2
        tensor(5.1931)
    """

    units: Tensor
    task_weights: Tensor

    @checked
    def __init__(
        self, funnel: nn.Module | None, tasks: TaskForest, *, task_weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        if (funnel is None) != (not len(tasks.funnel)):
            raise InputError(f"`funnel` must be the loss of the tasks that happen or not: {list(tasks.funnel)}")
        values = tasks.values
        task_weights = [1.0] * len(values) if task_weights is None else list(task_weights)
        if len(task_weights) != len(values):
            names = [task.name for task in values]
            raise InputError(f"`task_weights` (={task_weights}) must be one for each of {names}")
        for weight in task_weights:
            check_at_least(0, task_weights=weight)
        self.funnel, self.tasks, self._weights = funnel, tasks, task_weights
        device = "cpu" if torch.get_default_device().type == "meta" else None  # see `TaskWeightedLoss`
        self.register_buffer("units", torch.ones(len(values), device=device))

    @checked
    def start(self, statistics: Mapping[str, LabelStatistics]) -> None:
        """Takes the units of the training labels, by task.

        Raises:
            InputError: if a task has no statistics, or a deviation is not above 0.
        """
        for task in self.tasks.values:
            if task.name not in statistics or not statistics[task.name].deviation > 0:
                raise InputError(f"`statistics` must have those of {task.name!r}, with a deviation above 0")
        units = [statistics[task.name].deviation for task in self.tasks.values]
        self.units.copy_(torch.tensor(units))

    def forward(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None, **further: Tensor) -> Tensor:
        """Maps logits ``[B, L]``, labels and weights ``[B, T]``, and what the funnel's loss reads, to a scalar.

        Raises:
            InputError: if a shape is another.
        """
        tasks = self.tasks
        for name, given, columns in (("logits", logits, tasks.num_outputs), ("labels", labels, len(tasks))):
            check_tensor(name, given)
            if given.dim() != 2 or given.shape != (len(logits), columns):
                raise InputError(f"`{name}` (of shape {list(given.shape)}) must be [B, {columns}], for {tasks}")
        if weights is not None:
            check_tensor("weights", weights)
            if weights.shape != labels.shape:
                raise InputError(f"`weights` (of shape {list(weights.shape)}) must be {list(labels.shape)}")
        first = len(tasks.funnel)
        total = logits.new_zeros(())
        if self.funnel is not None:
            of_funnel = None if weights is None else weights[:, :first]
            total = self.funnel(logits[:, :first], labels[:, :first], of_funnel, **further)
        for place, task in enumerate(tasks.values, first):
            counts = value_weights(tasks, labels, weights, place)
            known = torch.where(counts == 0, 0.0, labels[:, place])
            unit = self.units[place - first]
            terms = value_loss(task.kind, logits[:, tasks.outputs[place]].to(unit.dtype), known, unit)
            total = total + self._weights[place - first] * mean_over_rows(terms, counts)
        return total


def loss_of_all(loss: Callable[..., nn.Module], tasks: TaskForest, **arguments: Any) -> nn.Module:
    """Makes a loss of all tasks from the loss of a funnel; ``task_weights``, if given, is of all tasks.

    Raises:
        InputError: as the two losses do.

    Example::

        >>> from torchrec_mtl import Task
        >>> from torchrec_mtl.losses import CrossEntropyLoss
        >>> tasks = TaskForest(Task("buy"), Task("spend", after="buy", kind=ZILN()))
        >>> loss_of_all(CrossEntropyLoss, tasks, task_weights=[1.0, 0.1]).funnel.task_weights
        tensor([1.])
    """
    if not tasks.values:
        return loss(tasks, **arguments)
    first, of_values = len(tasks.funnel), None
    if (weights := arguments.get("task_weights")) is not None:
        if len(weights) != len(tasks):
            raise InputError(f"`task_weights` (={list(weights)}) must be one a task: {list(tasks)}")
        arguments, of_values = {**arguments, "task_weights": weights[:first]}, weights[first:]
    return FunnelAndValues(loss(tasks.funnel, **arguments) if first else None, tasks, task_weights=of_values)
