"""AITM's adaptive information transfer (Xi et al., KDD 2021)."""

import torch
from torch import Tensor, nn


class InformationTransfer(nn.Module):
    """``z_t = AIT(p_{t-1}, q_t)``: how much a task takes from the one before, and how much it keeps of its own.

    The paper's equations, with ``u`` one of ``p_{t-1}`` and ``q_t``::

        z_t = sum_u w_u h_1(u),    w_u = softmax_u(<h_2(u), h_3(u)> / sqrt(D))

    Unlike attention, each ``u`` meets its own key only. ``h_1``, ``h_2``, ``h_3`` (``value``, ``key``, ``query``) are
    "feed-forward networks" in the paper and matrices without bias in the authors' code, which is followed.

    Args:
        features: ``D``.

    Example::

        >>> InformationTransfer(8)(torch.randn(2, 8), torch.randn(2, 8)).shape
        torch.Size([2, 8])
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.query = nn.Linear(features, features, bias=False)
        self.key = nn.Linear(features, features, bias=False)
        self.value = nn.Linear(features, features, bias=False)

    def forward(self, transferred: Tensor, own: Tensor) -> Tensor:
        """``p_{t-1}`` and ``q_t``, ``[B, D]`` each, to ``z_t [B, D]``."""
        pair = torch.stack([transferred, own], dim=1)
        scores = (self.query(pair) * self.key(pair)).sum(dim=2, keepdim=True) / pair.shape[2] ** 0.5
        return self.value((scores.softmax(dim=1) * pair).sum(dim=1))  # h_1 is linear: mixing first halves its work
