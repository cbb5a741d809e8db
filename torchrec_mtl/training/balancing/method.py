"""What every method of balancing is: a function from the tasks' losses, or their gradients, to the tasks' weights."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from torchrec_mtl.errors import InputError
from torchrec_mtl.tasks import TaskForest

Reads = Literal["nothing", "losses", "representation", "shared"]
GRADIENTS = ("representation", "shared")


class BalancingMethod(nn.Module):
    """Base of the methods. A method is called once for each batch, on all ranks with the same values.

    ``forward(losses, gram) -> weights [T]``. ``losses [T]`` are the tasks' mean losses over the rows of all ranks, and
    ``gram [T, T]`` are the scalar products of the tasks' gradients, ``gram[i, j] = <g_i, g_j>``. Both are float64 on
    the CPU, and finite. What a method keeps from batch to batch is in buffers, or in parameters that are trained with
    the model, so that a checkpoint holds it.

    Attributes:
        reads: what the method reads. ``"losses"`` is the losses alone. ``"representation"`` is also the Gram matrix of
            the gradients with respect to the shared representation, the output of the model's `FeatureArch`, one
            vector for the whole batch. ``"shared"`` is that of the gradients with respect to the shared parameters
            above it as well, in one vector with the representation, which stands for the tables.
        weighs_specific: whether parameters that only one task reads have the weighted gradient too; if not, they have
            the gradient of the plain sum.
    """

    reads: Reads = "losses"
    weighs_specific: ClassVar[bool] = False

    def forward(self, losses: Tensor, gram: Tensor) -> Tensor:
        """Maps the losses ``[T]`` and the Gram matrix ``[T, T]`` to the weights ``[T]``; empty where they are not read.

        Raises:
            NotImplementedError: always; each method has this function.
        """
        raise NotImplementedError

    def penalty(self) -> Tensor | None:
        """A term that is added to the weighted losses, for parameters of the method."""
        return None


def check_tasks(method: str, tasks: TaskForest) -> None:
    """Raises `InputError` unless there are two tasks to balance.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> check_tasks("dwa", TaskChain(["click"]))
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `tasks` (=['click']) must be at least two for `balancing` 'dwa'
    """
    if len(tasks) < 2:
        raise InputError(f"`tasks` (={list(tasks)}) must be at least two for `balancing` {method!r}")


def state(values: Tensor) -> Tensor:
    """A buffer's first values, float64 on the CPU, whatever the default device is."""
    with torch.device("cpu"):
        return values.detach().clone().to("cpu", torch.float64)
