"""Dynamic weight average (Liu, Johns, Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019)."""

import torch
from torch import Tensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError, check_at_least
from torchrec_mtl.tasks import TaskForest
from torchrec_mtl.training.balancing.method import BalancingMethod, check_tasks, state


class DWA(BalancingMethod):
    """``w_t = T exp(r_t / tau) / sum_i exp(r_i / tau)``, ``r_t = L_t(k - 1) / L_t(k - 2)``: equation (7).

    ``L_t(k)`` is the mean loss over an interval of batches; the paper's is an epoch. A task whose loss falls slowly has
    a larger weight. In the first two intervals all weights are 1.

    What the sources leave open: models of this field are often trained for one epoch, so here the interval is a number
    of batches. It must be long enough that a rare task's mean loss is not noise.

    Args:
        tasks: the ``T`` tasks.
        temperature: ``tau``; the larger, the closer the weights are to 1. 2 in the paper.
        interval: number of batches over which losses are averaged; that of an epoch is the paper's.

    Raises:
        InputError: if there is one task, ``temperature`` is not above 0, or ``interval`` is below 1.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> method = DWA(TaskChain(["click", "purchase"]), interval=1)
        >>> for losses in ([1.0, 1.0], [0.5, 1.0], [0.5, 1.0]):
        ...     weights = method(torch.tensor(losses, dtype=torch.float64), torch.empty(0))
        >>> weights.tolist()  # the first has halved its loss
        [0.8756..., 1.1243...]
    """

    means: Tensor
    sums: Tensor
    count: Tensor

    @checked
    def __init__(self, tasks: TaskForest, *, temperature: float = 2.0, interval: int = 1000) -> None:
        super().__init__()
        check_tasks("dwa", tasks)
        check_at_least(1, interval=interval)
        check_at_least(0, temperature=temperature)
        if temperature == 0:
            raise InputError("`temperature` (=0) must be above 0")
        self.temperature, self.interval = temperature, interval
        self.register_buffer("means", state(torch.ones(2, len(tasks))))  # of the last interval, and of that before
        self.register_buffer("sums", state(torch.zeros(len(tasks))))
        self.register_buffer("count", state(torch.zeros(())))  # batches so far

    def forward(self, losses: Tensor, gram: Tensor) -> Tensor:
        """Counts the batch's losses ``[T]`` and returns the weights ``[T]`` of this batch."""
        number = int(self.count)
        weights = torch.ones_like(losses)
        if number >= 2 * self.interval:
            last, before = self.means.cpu()
            weights = len(losses) * torch.softmax(last / before.clamp(min=1e-12) / self.temperature, 0)
        self.sums += losses.to(self.sums)
        self.count += 1
        if (number + 1) % self.interval == 0:
            self.means.copy_(torch.stack([self.sums / self.interval, self.means[0]]))
            self.sums.zero_()
        return weights
