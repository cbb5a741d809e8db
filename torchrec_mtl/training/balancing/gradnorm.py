"""GradNorm (Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing", ICML 2018)."""

import math
from typing import Literal

import torch
from torch import Tensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least, check_choice
from torchrec_mtl.tasks import TaskForest
from torchrec_mtl.training.balancing.adam import WeightAdam
from torchrec_mtl.training.balancing.method import BalancingMethod, check_tasks, state

_LEAST = 1e-4  # that a weight falls to


class GradNorm(BalancingMethod):
    """``sum_t w_t L_t``, with weights that bring the norms of the tasks' gradients to a common scale: Algorithm 1.

    With ``G_t = |w_t g_t|``, their mean ``G``, and each task's inverse training rate
    ``r_t = (L_t / L_t(0)) / mean_i (L_i / L_i(0))``, the weights take a step down::

        L_grad = sum_t |G_t - G r_t^alpha|

    where the target ``G r_t^alpha`` is held fixed, equations (1) and (2); then they are scaled to add up to ``T``. The
    step is taken after the batch, as in the algorithm: a batch has the weights that those before it led to. The
    weights multiply the gradients of all parameters, those of a single task too.

    What the sources leave open: of which parameters the gradients are; the paper has the last shared layer's. Here
    they are those with respect to the representation, all of whose rows count. How the weights are updated; here by
    Adam, from 1. That a weight stays positive; here it is at least 1e-4. ``L_t(0)`` is the first batch's loss, which
    is noise for a rare task in a small batch; the paper also proposes ``log 2``, a cross entropy's loss of a model
    that knows nothing: ``initial_losses="log2"``.

    Args:
        tasks: the ``T`` tasks.
        alpha: how strongly tasks are pulled to one training rate; the paper's experiments have 0.12 to 1.5.
        learning_rate: learning rate of the weights.
        initial_losses: ``L_t(0)``, ``"first_batch"`` or ``"log2"``.

    Raises:
        InputError: if there is one task, a number is negative, or ``initial_losses`` is not one of the above.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> method = GradNorm(TaskChain(["click", "purchase"]), learning_rate=0.1)
        >>> gram = torch.tensor([[9.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> for _ in range(3):
        ...     weights = method(torch.ones(2, dtype=torch.float64), gram)
        >>> [round(weight, 2) for weight in weights.tolist()]  # the first task's gradient is the larger
        [0.8, 1.2]
    """

    reads = "representation"
    weighs_specific = True

    weights: Tensor
    initial: Tensor

    @checked
    def __init__(
        self,
        tasks: TaskForest,
        *,
        alpha: float = 1.5,
        learning_rate: float = 0.025,
        initial_losses: Literal["first_batch", "log2"] = "first_batch",
    ) -> None:
        super().__init__()
        check_tasks("gradnorm", tasks)
        check_at_least(0, alpha=alpha, learning_rate=learning_rate)
        check_choice("initial_losses", initial_losses, ("first_batch", "log2"))
        self.alpha = alpha
        self.register_buffer("weights", state(torch.ones(len(tasks))))
        known = math.log(2) if initial_losses == "log2" else 0.0  # 0: not known yet
        self.register_buffer("initial", state(torch.full((len(tasks),), known)))
        self.adam = WeightAdam(len(tasks), learning_rate)

    def forward(self, losses: Tensor, gram: Tensor) -> Tensor:
        """Maps the losses ``[T]`` and the Gram matrix ``[T, T]`` to the weights ``[T]``, and trains these."""
        weights, initial = self.weights.cpu().clone(), self.initial.cpu()
        initial = torch.where(initial > 0, initial, losses)  # of the first batch in which a task has a loss
        self.initial.copy_(initial)
        rates = torch.where(initial > 0, losses / initial, 1.0)
        norms = gram.diagonal().clamp(min=0).sqrt()
        target = (weights * norms).mean() * (rates / rates.mean().clamp(min=1e-12)) ** self.alpha
        moved = (weights - self.adam(torch.sign(weights * norms - target) * norms)).clamp(min=_LEAST)
        self.weights.copy_(moved * (len(moved) / moved.sum()))
        return weights
