"""Aligned-MTL (Senushkin et al., "Independent Component Alignment for Multi-Task Learning", CVPR 2023)."""

from typing import Literal

import torch
from torch import Tensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_choice
from torchrec_mtl.tasks import TaskForest
from torchrec_mtl.training.balancing.method import GRADIENTS, BalancingMethod, check_tasks

_RANK_TOLERANCE = torch.finfo(torch.float32).eps  # the gradients' precision


class AlignedMTL(BalancingMethod):
    """The gradients nearest to orthogonal ones of equal length, added up: Algorithm 1.

    With ``G`` the matrix of gradients and ``G^T G = V Lambda V^T``, the aligned gradients are ``G B``, whose condition
    number is 1::

        B = sqrt(lambda_R) V Lambda^(-1/2) V^T,  w = B 1

    over the ``R`` eigenvalues that are not 0, of which ``lambda_R`` is the least. By default the gradients are those
    with respect to the representation, which is the paper's Aligned-MTL-UB.

    What the sources leave open: which eigenvalues are 0; here those below ``T lambda_1`` times float32's precision, as
    in the authors' code. The paper weighs the aligned gradients as the user wants; here equally, by 1. The shortest
    principal component sets the scale: where tasks agree, or one has a small gradient, the direction is short.

    Args:
        tasks: the ``T`` tasks.
        gradients: gradients that are aligned, ``"representation"``, or ``"shared"`` for those of the shared parameters
            as well, see `PCGrad`.

    Raises:
        InputError: if there is one task, or ``gradients`` is not one of the above.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> method = AlignedMTL(TaskChain(["click", "purchase"]))
        >>> gradients = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> weights = method(torch.ones(2), gradients @ gradients.T)
        >>> [round(value, 6) for value in (weights @ gradients).tolist()]
        [1.0, 1.0]
    """

    @checked
    def __init__(self, tasks: TaskForest, *, gradients: Literal["representation", "shared"] = "representation") -> None:
        super().__init__()
        check_tasks("aligned_mtl", tasks)
        check_choice("gradients", gradients, GRADIENTS)
        self.reads = gradients

    def forward(self, losses: Tensor, gram: Tensor) -> Tensor:
        """Maps the Gram matrix ``[T, T]`` to the weights ``[T]``; the losses are not used."""
        eigenvalues, eigenvectors = torch.linalg.eigh(gram)  # ascending
        kept = eigenvalues > len(gram) * _RANK_TOLERANCE * eigenvalues[-1]
        if not kept.any():  # no task has a gradient
            return torch.ones(len(gram), dtype=gram.dtype)
        eigenvalues, eigenvectors = eigenvalues[kept], eigenvectors[:, kept]
        return (eigenvectors * (eigenvalues[0] / eigenvalues).sqrt()) @ eigenvectors.sum(0)
