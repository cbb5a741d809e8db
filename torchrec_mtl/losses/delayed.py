"""The loss of ES-DFM (Yang et al., "Capturing Delayed Feedback in Conversion Rate Prediction via Elapsed-Time
Sampling", AAAI 2021), for labels that arrive late.

A row is read after a waiting time ``e``, with label ``v = 1`` if the task has happened by then, and once more, with
``v = 1``, when it happens later: `torchrec_mtl.data.table.Delay` makes such rows. For each x, with ``p`` the true
probability of the task and ``h`` its delay,

- ``p_dp = P(task, h > e | x)`` is the probability of a delayed positive,
- ``p_rn = (1 - p) / (1 - p + p_dp)`` is the probability that a negative is a real one,

and ``(1 + p_dp)`` rows a row of x are read, ``p`` of them with ``v = 1``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError
from torchrec_mtl.losses import functional
from torchrec_mtl.losses.functional import check_shapes
from torchrec_mtl.losses.modules import TaskWeightedLoss
from torchrec_mtl.tasks import TaskForest, corrected_tasks

Triples = Sequence[tuple[int, int, int]]


@torch.fx.wrap
def importance_weights(logits: Tensor, labels: Tensor, weights: Tensor | None, corrected: Triples) -> Tensor:
    """ES-DFM's weights times the given ones: ``1 + p_dp`` where ``v = 1``, ``(1 + p_dp) p_rn`` where ``v = 0``.

    No gradient flows through them.

    Args:
        logits: logits, ``[B, T]``.
        labels: labels ``v``, ``[B, T]``.
        weights: weights of the labels, ``[B, T]``, or None where all are 1.
        corrected: positions of each corrected task, of its ``p_dp`` and of its ``p_rn``.

    Returns:
        Weights, ``[B, T]``; for tasks that are not corrected, those given.

    Example::

        >>> logits, labels = torch.zeros(2, 3), torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        >>> importance_weights(logits, labels, None, [(0, 1, 2)])[:, 0]  # p_dp = p_rn = 1/2
        tensor([1.5000, 0.7500])
    """
    check_shapes(logits, labels=labels, weights=weights)
    p = logits.detach().sigmoid()
    by_task = list(torch.ones_like(p).unbind(1))
    for task, delayed, real_negative in corrected:
        by_task[task] = (1 + p[:, delayed]) * torch.where(labels[:, task] == 1, 1.0, p[:, real_negative])
    importance = torch.stack(by_task, dim=1)
    return importance if weights is None else torch.where(weights == 0, 0.0, importance * weights)


class DelayedLoss(TaskWeightedLoss):
    """Cross entropy of all tasks, with ES-DFM's importance weights for those whose labels arrive late.

    ``-[v (1 + p_dp) log f + (1 - v) (1 + p_dp) p_rn log(1 - f)]`` is the paper's loss, equation (1) of its supplement.
    As all else here, ``f`` and ``p_dp`` are *marginal*: of all rows, not of those where the step before happened. The
    corrected tasks are those with the tasks ``<task>_delayed`` and ``<task>_real_negative`` beside them, which the
    model predicts too; their labels are known for older rows. The paper trains these two beforehand, here they are
    trained at once, and no gradient flows through the weights.

    On a constant x the minimum is the truth (supplement, equation (9)), ``p / (p + p_rn (1 - p + p_dp))``; it does not
    depend on ``p_dp``, which weighs one x against another.

    Args:
        tasks: the ``T`` tasks of the prepared data.
        task_weights: weights ``w_t`` of the tasks' cross entropies, one per task; 1 by default.

    Raises:
        InputError: if no task has the two beside it, there is not one weight per task, or a weight is negative.

    Example::

        >>> from torchrec_mtl import Task, TaskForest
        >>> loss = DelayedLoss(TaskForest(Task("buy"), Task("buy_delayed"), Task("buy_real_negative")))
        >>> loss(torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 0.0]]))  # (1.5 + 1 + 1) log 2
        tensor(2.4260)
    """

    @checked
    def __init__(self, tasks: TaskForest, *, task_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.set_task_weights(tasks, task_weights)
        self.corrected = corrected_tasks(tasks)
        if not self.corrected:
            rule = "must have a task with '<task>_delayed' and '<task>_real_negative' beside it: see `Delay`"
            raise InputError(f"`tasks` (={list(tasks)}) of DelayedLoss {rule}")

    def forward(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Maps logits, labels and weights, ``[B, T]`` each, to a scalar."""
        importance = importance_weights(logits, labels, weights, self.corrected)
        return functional.cross_entropy(logits, labels, importance, self.task_weights)
