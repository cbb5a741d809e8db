"""PCGrad (Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020)."""

import random
from typing import Literal

import torch
from torch import Tensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_choice
from torchrec_mtl.tasks import TaskForest
from torchrec_mtl.training.balancing.method import GRADIENTS, BalancingMethod, check_tasks, state


class PCGrad(BalancingMethod):
    """Algorithm 1: of each task's gradient, what opposes another task's is taken away; the results are added.

    For each task ``i``, and each other task ``j`` in random order, where ``<g_i^PC, g_j> < 0``::

        g_i^PC = g_i^PC - <g_i^PC, g_j> / |g_j|^2 g_j

    The sum of the results is one of the tasks' gradients with weights that their scalar products give, so the
    gradients themselves are not changed. Where no two oppose each other, it is the plain sum.

    What the sources leave open: the gradient that tables would have is not known before they are updated, so the
    representation's stands for it, see ``gradients``. The order is drawn from the number of batches so far: all ranks
    and a run that is resumed draw the same.

    Args:
        tasks: the ``T`` tasks.
        gradients: gradients that are compared, ``"shared"`` for those of the shared parameters and of the
            representation, or ``"representation"`` for the latter alone.

    Raises:
        InputError: if there is one task, or ``gradients`` is not one of the above.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> method = PCGrad(TaskChain(["click", "purchase"]))
        >>> gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
        >>> weights = method(torch.ones(2), gradients @ gradients.T)  # (1, 0) + (-1, 1) / 2 and (-1, 1) + (1, 0)
        >>> weights.tolist(), (weights @ gradients.double()).tolist()
        ([2.0, 1.5], [0.5, 1.5])
    """

    count: Tensor

    @checked
    def __init__(self, tasks: TaskForest, *, gradients: Literal["shared", "representation"] = "shared") -> None:
        super().__init__()
        check_tasks("pcgrad", tasks)
        check_choice("gradients", gradients, GRADIENTS)
        self.reads = gradients
        self.register_buffer("count", state(torch.zeros(())))  # batches so far

    def forward(self, losses: Tensor, gram: Tensor) -> Tensor:
        """Maps the Gram matrix ``[T, T]`` to the weights ``[T]``; the losses are not used."""
        draw = random.Random(int(self.count))
        self.count += 1
        products, tasks = gram.tolist(), range(len(gram))
        total = [0.0 for _ in tasks]
        for task in tasks:
            weights = [float(other == task) for other in tasks]  # of g_task^PC
            for other in draw.sample([each for each in tasks if each != task], len(tasks) - 1):
                product = sum(weight * products[each][other] for each, weight in enumerate(weights))
                if product < 0:
                    weights[other] -= product / products[other][other]
            total = [sum(pair) for pair in zip(total, weights, strict=True)]
        return torch.tensor(total, dtype=torch.float64)
