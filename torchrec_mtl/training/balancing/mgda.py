"""MGDA (Sener, Koltun, "Multi-Task Learning as Multi-Objective Optimization", NeurIPS 2018)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_choice
from torchrec_mtl.tasks import TaskForest
from torchrec_mtl.training.balancing.method import GRADIENTS, BalancingMethod, check_tasks
from torchrec_mtl.training.balancing.simplex import RELATIVE_TOLERANCE, minimise_over_weights

NORMALISATIONS = ("none", "l2", "loss", "loss+")


class MGDA(BalancingMethod):
    """The shortest of all averages of the tasks' gradients: a direction in which no task's loss rises.

    ``min |sum_t w_t g_t|^2`` over weights that are not negative and add up to 1, equation (3). By default the gradients
    are those with respect to the representation, which is the paper's MGDA-UB: section 3.3 shows that this bounds
    (3) from above, and that its solution is Pareto optimal as well.

    What the sources leave open: the paper's Algorithm 2 is Frank-Wolfe's, and stops somewhere near the minimum; here
    it goes on to the minimum. The authors' code normalises gradients in one of four ways, which the paper
    does not mention. It also scales the gradients of task-specific parameters; here they stay as they are, as in
    Algorithm 1. The weights add up to 1, so for tables with SGD the learning rate acts as that of a mean.

    Args:
        tasks: the ``T`` tasks.
        normalise: what each task's gradient is divided by before the minimum is sought, ``"none"``, its norm
            (``"l2"``), its loss (``"loss"``), or both (``"loss+"``).
        gradients: gradients that are averaged, ``"representation"``, or ``"shared"`` for those of the shared parameters
            as well, see `PCGrad`.

    Raises:
        InputError: if there is one task, or a choice is not one of the above.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> method = MGDA(TaskChain(["click", "purchase"]))
        >>> gradients = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> [round(weight, 6) for weight in method(torch.ones(2), gradients @ gradients.T).tolist()]
        [0.2, 0.8]
    """

    @checked
    def __init__(
        self,
        tasks: TaskForest,
        *,
        normalise: Literal["none", "l2", "loss", "loss+"] = "none",
        gradients: Literal["representation", "shared"] = "representation",
    ) -> None:
        super().__init__()
        check_tasks("mgda", tasks)
        check_choice("normalise", normalise, NORMALISATIONS)
        check_choice("gradients", gradients, GRADIENTS)
        self.normalise, self.reads = normalise, gradients

    def forward(self, losses: Tensor, gram: Tensor) -> Tensor:
        """Maps the losses ``[T]`` and the Gram matrix ``[T, T]`` to the weights ``[T]``."""
        divisor = torch.ones_like(losses)
        if self.normalise in ("loss", "loss+"):
            divisor = divisor * losses
        if self.normalise in ("l2", "loss+"):
            divisor = divisor * gram.diagonal().sqrt()
        divisor = torch.where(divisor > 0, divisor, 1.0)  # a gradient of 0 stays so
        return torch.tensor(shortest((gram / divisor[:, None] / divisor).tolist()), dtype=torch.float64)


def shortest(products: Sequence[Sequence[float]]) -> list[float]:
    """The weights ``[T]`` of the shortest average of vectors, from their scalar products ``[T, T]``.

    Example::

        >>> shortest([[1.0, 2.0], [2.0, 9.0]])  # the other points the same way, and is longer
        [1.0, 0.0]
    """
    tasks = range(len(products))

    def slopes(weights: Sequence[float]) -> list[float]:
        return [sum(products[task][other] * weights[other] for other in tasks) for task in tasks]

    def move(weights: Sequence[float], to: int, of: int) -> float:
        slope = slopes(weights)
        curvature = products[to][to] + products[of][of] - 2 * products[to][of]
        return (slope[of] - slope[to]) / curvature if curvature > 0 else 1.0

    longest = max(products[task][task] for task in tasks)
    return minimise_over_weights(len(products), slopes, move, RELATIVE_TOLERANCE * longest)
