"""Uncertainty weighting (Kendall, Gal, Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses", CVPR 2018)."""

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.tasks import TaskForest
from torchrec_mtl.training.balancing.method import BalancingMethod, check_tasks


class Uncertainty(BalancingMethod):
    """``sum_t L_t / sigma_t^2 + log sigma_t``: each task has a noise ``sigma_t``, which is learnt.

    It is the form of equation (10) for classification, where the loss is a cross entropy. A regression's squared error
    has ``1 / (2 sigma^2)``. As the paper proposes, ``s_t = log sigma_t^2`` is the parameter, so that the weight is
    ``exp(-s_t)`` and the term ``s_t / 2``. At the minimum ``sigma_t^2 = 2 L_t``: the smaller a task's loss,
    the larger its weight, and rare events have small losses.

    What the sources leave open: where ``s_t`` starts, and its optimizer. Here it starts at 0, the plain sum, and is
    trained as the model's dense parameters are; weight decay draws it to 0. It needs neither gradients nor other
    ranks' losses, and costs next to nothing.

    Args:
        tasks: the ``T`` tasks.

    Raises:
        InputError: if there is one task.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> method = Uncertainty(TaskChain(["click", "purchase"]))
        >>> _ = method.log_variances.data.copy_(torch.tensor([0.0, 2.0]))
        >>> method(torch.tensor([0.5, 0.1]), torch.empty(0)).detach(), method.penalty().item()
        (tensor([1.0000, 0.1353]), 1.0)
    """

    reads = "nothing"

    @checked
    def __init__(self, tasks: TaskForest) -> None:
        super().__init__()
        check_tasks("uncertainty", tasks)
        self.log_variances = nn.Parameter(torch.zeros(len(tasks)))

    def reset_parameters(self) -> None:
        """Starts anew, after ``to_empty``."""
        nn.init.zeros_(self.log_variances)

    def forward(self, losses: Tensor, gram: Tensor) -> Tensor:
        """Returns ``1 / sigma_t^2``, ``[T]``, with its gradient."""
        return (-self.log_variances).exp()

    def penalty(self) -> Tensor:
        """``sum_t log sigma_t``."""
        return self.log_variances.sum() / 2
