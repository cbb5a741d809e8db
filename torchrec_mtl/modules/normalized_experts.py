"""The experts and gates of HoME (Wang et al., 2024, section 3): each expert is kept in use.

Letters: ``B`` samples, ``E`` experts; ``D`` is the width of an expert's output.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least, check_sizes
from torchrec_mtl.modules.gates import SoftmaxGate


class FeatureGate(nn.Module):
    """``sum_l g(v)_l LoRA_l(v)`` with ``LoRA_l(v) = 2 sigmoid(v B_l A_l)``: by how much each column of an input counts.

    ``B_l A_l`` is a square matrix of low rank, and ``g`` a `SoftmaxGate`; with one rank it is left out. Inputs near 0,
    as those of new tables, count once.

    Args:
        in_features: width of the input.
        ranks: rank of each ``B_l A_l``.

    Raises:
        InputError: if there is no rank, or a number is below 1.

    Example::

        >>> FeatureGate(6, ranks=[2, 2])(torch.zeros(1, 6))
        tensor([[1., 1., 1., 1., 1., 1.]], grad_fn=<SqueezeBackward1>)
    """

    @checked
    def __init__(self, in_features: int, ranks: Sequence[int]) -> None:
        super().__init__()
        check_at_least(1, in_features=in_features)
        check_sizes(1, feature_gate_ranks=ranks)
        self.down = nn.ModuleList(nn.Linear(in_features, rank, bias=False) for rank in ranks)
        self.up = nn.ModuleList(nn.Linear(rank, in_features, bias=False) for rank in ranks)
        self.gate = SoftmaxGate(in_features, len(ranks)) if len(ranks) > 1 else None

    def forward(self, v: Tensor) -> Tensor:
        """Maps ``[B, in_features]`` to factors ``[B, in_features]`` between 0 and 2."""
        factors = [2 * up(down(v)).sigmoid() for down, up in zip(self.down, self.up, strict=True)]
        return factors[0] if self.gate is None else torch.bmm(self.gate(v), torch.stack(factors, dim=1)).squeeze(1)


class NormalizedExperts(nn.Module):
    """``E`` experts ``Swish(Norm(W_i (v * gate(v)) + b_i))`` on one `FeatureGate`.

    The norm is of each expert's output alone, so that all experts are on one scale and none falls silent.

    Args:
        in_features: width of the input.
        num_experts: number of experts, ``E``.
        out_features: width of an expert's output, ``D``.
        ranks: see `FeatureGate`.

    Raises:
        InputError: if there is no rank, or a number is below 1.

    Example::

        >>> NormalizedExperts(6, num_experts=3, out_features=4, ranks=[2])(torch.randn(2, 6)).shape
        torch.Size([2, 3, 4])
    """

    @checked
    def __init__(self, in_features: int, num_experts: int, out_features: int, ranks: Sequence[int]) -> None:
        super().__init__()
        check_at_least(1, in_features=in_features, num_experts=num_experts, out_features=out_features)
        self.shape = (num_experts, out_features)
        self.feature_gate = FeatureGate(in_features, ranks)
        self.linear = nn.Linear(in_features, num_experts * out_features)
        self.norm = nn.GroupNorm(num_experts, num_experts * out_features)

    def forward(self, v: Tensor) -> Tensor:
        """Maps ``[B, in_features]`` to ``[B, E, D]``."""
        return F.silu(self.norm(self.linear(v * self.feature_gate(v)))).unflatten(1, self.shape)


class SelfGatedMixture(nn.Module):
    """``sum_i g(v)_i e_i + sum_j s(v)_j o_j``: a mixture of all experts ``e``, plus one of a unit's own, ``o``.

    ``g = softmax(W_g v)``. The self-gate ``s`` is a softmax too, or with one expert a sigmoid; it keeps a unit's own
    experts in training where ``g`` prefers others.

    Args:
        in_features: width of the input.
        num_experts: number of all experts.
        num_own: number of the unit's own experts.

    Raises:
        InputError: if a number is below 1.

    Example::

        >>> mixture = SelfGatedMixture(6, num_experts=4, num_own=2)
        >>> mixture(torch.randn(3, 6), torch.randn(3, 4, 5), torch.randn(3, 2, 5)).shape
        torch.Size([3, 5])
    """

    @checked
    def __init__(self, in_features: int, num_experts: int, num_own: int) -> None:
        super().__init__()
        check_at_least(1, in_features=in_features, num_experts=num_experts, num_own=num_own)
        self.gate = SoftmaxGate(in_features, num_experts)
        self.self_gate = nn.Linear(in_features, num_own, bias=False)
        self.has_one = num_own == 1

    def forward(self, v: Tensor, experts: Tensor, own: Tensor) -> Tensor:
        """Maps ``[B, in_features]``, ``[B, num_experts, D]`` and ``[B, num_own, D]`` to ``[B, D]``."""
        scores = self.self_gate(v)
        weights = (scores.sigmoid() if self.has_one else scores.softmax(1)).unsqueeze(1)
        return (torch.bmm(self.gate(v), experts) + torch.bmm(weights, own)).squeeze(1)
