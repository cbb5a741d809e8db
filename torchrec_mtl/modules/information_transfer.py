"""AITM's adaptive information transfer (Xi et al., KDD 2021)."""

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least


class InformationTransfer(nn.Module):
    """``z_t = AIT(p_{t-1}, q_t)``: weighs what a task receives from the previous task against its own representation.

    The paper's equations, with ``u`` one of ``p_{t-1}`` and ``q_t``::

        z_t = sum_u w_u h_1(u),    w_u = softmax_u(<h_2(u), h_3(u)> / sqrt(D))

    Unlike in attention, each ``u`` is compared only with its own key. ``h_1``, ``h_2`` and ``h_3`` (``value``, ``key``
    and ``query``) are "feed-forward networks" in the paper. Here they are matrices without bias, as in the authors'
    code.

    Args:
        features: width of the representations, ``D``.

    Raises:
        InputError: if ``features`` is below 1.

    Example::

        >>> InformationTransfer(8)(torch.randn(2, 8), torch.randn(2, 8)).shape
        torch.Size([2, 8])
    """

    @checked
    def __init__(self, features: int) -> None:
        super().__init__()
        check_at_least(1, features=features)
        self.query = nn.Linear(features, features, bias=False)
        self.key = nn.Linear(features, features, bias=False)
        self.value = nn.Linear(features, features, bias=False)

    def forward(self, transferred: Tensor, own: Tensor) -> Tensor:
        """Maps ``p_{t-1}`` and ``q_t``, both ``[B, D]``, to ``z_t [B, D]``."""
        pair = torch.stack([transferred, own], dim=1)
        scores = (self.query(pair) * self.key(pair)).sum(dim=2, keepdim=True) / pair.shape[2] ** 0.5
        return self.value((scores.softmax(dim=1) * pair).sum(dim=1))  # h_1 is linear: mixing first halves its work
