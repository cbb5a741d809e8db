"""FAMO (Liu et al., "FAMO: Fast Adaptive Multitask Optimization", NeurIPS 2023)."""

import torch
from torch import Tensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least
from torchrec_mtl.tasks import TaskForest
from torchrec_mtl.training.balancing.adam import WeightAdam
from torchrec_mtl.training.balancing.method import BalancingMethod, check_tasks, state

_EPS = 1e-8  # that is added to a loss, as in the authors' code


class FAMO(BalancingMethod):
    """Lowers all log losses at one rate, from the losses alone: Algorithm 1.

    With ``z = softmax(xi)``, the gradient is that of ``c sum_t z_t log L_t``, with ``c = 1 / sum_t (z_t / L_t)``; so
    the weights are ``w_t = c z_t / L_t``, and add up to 1. After the model's step, with its new losses ``L'``::

        xi = xi - beta (J delta + gamma xi),  delta_t = log L_t - log L'_t,  J = d z / d xi

    which lowers ``z_t`` of the tasks that fell most.

    What the sources leave open: in which batch ``L'`` is. The authors' code goes through the batch again after the
    step. Here ``L'`` is the loss in the next batch, which costs nothing; what two batches differ by comes with both
    signs, one batch after the other. On one batch over and over it is the authors' method. Their code takes Adam for
    ``xi``, with ``gamma xi`` in its gradient, and so does this. The weights add up to 1, so for tables with SGD the
    learning rate acts as that of a mean.

    Args:
        tasks: the ``T`` tasks.
        learning_rate: learning rate ``beta``; 0.025 in the authors' code.
        decay: decay ``gamma`` of ``xi``; 0.01 in the authors' code.

    Raises:
        InputError: if there is one task, or a number is negative.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> method = FAMO(TaskChain(["click", "purchase"]))
        >>> method(torch.tensor([0.6, 0.2], dtype=torch.float64), torch.empty(0)).tolist()  # 1 / L, to a sum of 1
        [0.25..., 0.74...]
    """

    reads = "losses"

    logits: Tensor
    before: Tensor

    @checked
    def __init__(self, tasks: TaskForest, *, learning_rate: float = 0.025, decay: float = 0.01) -> None:
        super().__init__()
        check_tasks("famo", tasks)
        check_at_least(0, learning_rate=learning_rate, decay=decay)
        self.decay = decay
        self.register_buffer("logits", state(torch.zeros(len(tasks))))  # xi
        self.register_buffer("before", state(torch.full((len(tasks),), -1.0)))  # losses; none yet
        self.adam = WeightAdam(len(tasks), learning_rate)

    def forward(self, losses: Tensor, gram: Tensor) -> Tensor:
        """Trains ``xi`` by what the losses ``[T]`` have fallen by, and returns the weights ``[T]``."""
        logits, before = self.logits.cpu(), self.before.cpu()
        losses = losses.clamp(min=0) + _EPS
        if (before >= 0).all():
            shares, fallen = logits.softmax(0), (before / losses).log()
            slope = shares * (fallen - shares @ fallen)  # J fallen
            logits = logits - self.adam(slope + self.decay * logits)
            self.logits.copy_(logits)
        self.before.copy_(losses)
        weights = logits.softmax(0) / losses
        return weights / weights.sum()
