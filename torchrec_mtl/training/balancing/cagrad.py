"""CAGrad (Liu et al., "Conflict-Averse Gradient Descent for Multi-Task Learning", NeurIPS 2021)."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError, check_choice, check_share
from torchrec_mtl.tasks import TaskForest
from torchrec_mtl.training.balancing.method import GRADIENTS, BalancingMethod, check_tasks
from torchrec_mtl.training.balancing.simplex import RELATIVE_TOLERANCE, minimise_over_weights

RESCALINGS = ("none", "square", "linear")


class CAGrad(BalancingMethod):
    """The direction near the mean gradient ``g_0`` that is best for the task it is worst for: Algorithm 1.

    ``max_d min_t <g_t, d>`` such that ``|d - g_0| <= c |g_0|``. Its solution is::

        d = g_0 + c |g_0| g_w / |g_w|,  g_w = sum_t w_t g_t,  w = argmin <g_w, g_0> + c |g_0| |g_w|

    over weights that are not negative and add up to 1. With ``c = 0`` it is the mean gradient; as ``c`` grows it
    approaches `MGDA`'s direction. Where ``g_w`` is 0, no direction helps all tasks, and ``g_0`` is taken.

    What the sources leave open: the authors' code solves the dual problem by SciPy's SLSQP and divides ``d`` by
    ``1 + c^2``, or ``1 + c``, or 1, which the paper does not mention: see ``rescale``. The gradients compared are those
    of `PCGrad`. ``d`` is a mean, so for tables with SGD the learning rate acts as that of a mean.

    Args:
        tasks: the ``T`` tasks.
        c: how far from the mean gradient the direction may be, from 0 to below 1; the paper's experiments have 0.2
            to 0.5.
        rescale: divisor of the direction, 1 for ``"none"``, ``1 + c^2`` for ``"square"``, ``1 + c`` for ``"linear"``.
        gradients: gradients that are compared, ``"shared"`` or ``"representation"``, see `PCGrad`.

    Raises:
        InputError: if there is one task, ``c`` is not from 0 to below 1, or a choice is not one of the above.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> method = CAGrad(TaskChain(["click", "purchase"]), c=0.5)
        >>> gradients = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> weights = method(torch.ones(2), gradients @ gradients.T)  # the mean is (1.5, 0.5)
        >>> [round(value, 3) for value in (weights @ gradients).tolist()]
        [1.5, 1.291]
    """

    @checked
    def __init__(
        self,
        tasks: TaskForest,
        *,
        c: float = 0.4,
        rescale: Literal["none", "square", "linear"] = "none",
        gradients: Literal["shared", "representation"] = "shared",
    ) -> None:
        super().__init__()
        check_tasks("cagrad", tasks)
        check_share(c=c)
        if c == 1:
            raise InputError("`c` (=1) must be below 1")
        check_choice("rescale", rescale, RESCALINGS)
        check_choice("gradients", gradients, GRADIENTS)
        self.c, self.reads = c, gradients
        self.divisor = dict(zip(RESCALINGS, (1.0, 1 + c**2, 1 + c), strict=True))[rescale]

    def forward(self, losses: Tensor, gram: Tensor) -> Tensor:
        """Maps the Gram matrix ``[T, T]`` to the weights ``[T]``; the losses are not used."""
        num_tasks = len(gram)
        radius = self.c * math.sqrt(max(float(gram.mean()), 0.0))
        of_dual = torch.tensor(dual_weights(gram.tolist(), radius), dtype=torch.float64)
        length = math.sqrt(max(float(of_dual @ gram @ of_dual), 0.0))
        weights = torch.full_like(of_dual, 1 / num_tasks)
        if length > 0:
            weights = weights + radius / length * of_dual
        return weights / self.divisor


def dual_weights(products: Sequence[Sequence[float]], radius: float) -> list[float]:
    """The weights ``w [T]`` at the minimum of ``<g_w, g_0> + radius |g_w|``, from ``<g_i, g_j> [T, T]``."""
    tasks = range(len(products))
    with_mean = [sum(of_task) / len(products) for of_task in products]

    def with_average(weights: Sequence[float]) -> list[float]:
        return [sum(products[task][other] * weights[other] for other in tasks) for task in tasks]

    def length_of(weights: Sequence[float], products_with: Sequence[float]) -> float:
        return math.sqrt(max(sum(map(float.__mul__, weights, products_with)), 0.0))

    def slopes(weights: Sequence[float]) -> list[float]:
        products_with = with_average(weights)
        length = length_of(weights, products_with)
        scale = radius / length if length > 0 else 0.0
        return [first + scale * second for first, second in zip(with_mean, products_with, strict=True)]

    def move(weights: Sequence[float], to: int, of: int) -> float:
        """Where the derivative along ``s`` is 0: ``b + radius (m + q s) / sqrt(square + 2 m s + q s^2) = 0``."""
        products_with = with_average(weights)
        square = length_of(weights, products_with) ** 2
        b, m = with_mean[to] - with_mean[of], products_with[to] - products_with[of]
        q = products[to][to] + products[of][of] - 2 * products[to][of]
        if q <= 0 or radius == 0 or (b / radius) ** 2 >= q:
            return 1.0  # it falls all the way
        ratio = -b / radius
        apart = max(square * q - m**2, 0.0)
        return (math.copysign(math.sqrt(ratio**2 * apart / (q - ratio**2)), ratio) - m) / q

    longest = max(products[task][task] for task in tasks)
    return minimise_over_weights(len(products), slopes, move, RELATIVE_TOLERANCE * longest)
