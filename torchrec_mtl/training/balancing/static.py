"""Fixed weights."""

from collections.abc import Sequence

from torch import Tensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError, check_at_least
from torchrec_mtl.tasks import TaskForest
from torchrec_mtl.training.balancing.method import BalancingMethod


class Static(BalancingMethod):
    """``sum_t w_t L_t`` with given weights: what the other methods are to be compared with.

    Unlike a loss's ``task_weights``, the weight multiplies all terms of a task, and no other loss needs to know it.

    Args:
        tasks: the ``T`` tasks.
        weights: the weights ``w_t``, one per task.

    Raises:
        InputError: if there is not one weight per task, or a weight is negative or not finite.

    Example::

        >>> import torch
        >>> from torchrec_mtl import TaskChain
        >>> Static(TaskChain(["click", "purchase"]), weights=[1.0, 5.0])(torch.ones(2), torch.empty(0))
        tensor([1., 5.])
    """

    reads = "nothing"

    @checked
    def __init__(self, tasks: TaskForest, *, weights: Sequence[float]) -> None:
        super().__init__()
        if len(weights) != len(tasks):
            raise InputError(f"`weights` (={list(weights)}) must be one a task: {list(tasks)}")
        for weight in weights:
            check_at_least(0, weights=weight)
        self.weights = tuple(float(weight) for weight in weights)

    def forward(self, losses: Tensor, gram: Tensor) -> Tensor:
        """Returns the weights, ``[T]``."""
        return losses.new_tensor(self.weights)
