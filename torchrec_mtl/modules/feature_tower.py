"""BPCM's feature tower, section 3.3: self-attention over the fields and their aggregation, fused by a gate."""

from typing import Literal

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError, check_at_least, check_choice
from torchrec_mtl.modules.attention import Attention, check_heads
from torchrec_mtl.modules.mlp import MLP


class FeatureAggregation(nn.Module):
    """The feature-aware aggregation unit, BPCM eq. (4): ``E_org = ReLU(W2 ReLU(W1 E + b1) + b2)``.

    The paper does not say on which axis the layers act.

    Args:
        num_fields: number of fields, ``F``.
        embedding_dim: embedding dimension, ``D``.
        hidden_size: output width of ``W1``; its input width by default.
        over: axis the layers act on: ``"embedding"``, each field's vector separately; or ``"fields"``, all flattened
            ``F * D`` fields together.

    Raises:
        InputError: if ``over`` is neither of the two, or a number is below 1.
    """

    @checked
    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        hidden_size: int | None = None,
        over: Literal["embedding", "fields"] = "embedding",
    ) -> None:
        super().__init__()
        check_choice("aggregation_over", over, ("embedding", "fields"))
        check_at_least(1, num_fields=num_fields, embedding_dim=embedding_dim)
        if hidden_size is not None:
            check_at_least(1, aggregation_size=hidden_size)
        self.over = over
        width = embedding_dim if over == "embedding" else num_fields * embedding_dim
        self.mlp = MLP(width, [hidden_size or width, width])

    def forward(self, fields: Tensor) -> Tensor:
        """Maps ``E [B, F, D]`` to ``E_org [B, F, D]``."""
        rows = fields.flatten(0, 1) if self.over == "embedding" else fields.flatten(1)
        return self.mlp(rows).view_as(fields)


class ComplementaryGate(nn.Module):
    """FCGate, BPCM eq. (5)-(6): ``W_b = sigmoid(W_C E_org + W_D E_att)``, ``q = E_att W_b + E_org (1 - W_b)``.

    Args:
        embedding_dim: embedding dimension, ``D``.

    Raises:
        InputError: if ``embedding_dim`` is below 1.
    """

    @checked
    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        check_at_least(1, embedding_dim=embedding_dim)
        self.organic = nn.Linear(embedding_dim, embedding_dim, bias=False)
        self.attended = nn.Linear(embedding_dim, embedding_dim, bias=False)

    def forward(self, attended: Tensor, organic: Tensor) -> Tensor:
        """Maps ``E_att`` and ``E_org``, both ``[B, F, D]``, to ``q [B, F, D]``."""
        share = torch.sigmoid(self.organic(organic) + self.attended(attended))  # BPCM eq. (5)
        return torch.lerp(organic, attended, share)  # BPCM eq. (6)


class FeatureTower(nn.Module):
    """The feature tower of one task, BPCM eq. (2)-(6).

    Args:
        num_fields: number of fields, ``F``.
        embedding_dim: embedding dimension, ``D``.
        num_heads: number of heads of the self-attention; the paper has one.
        aggregation_over, aggregation_size: arguments ``over`` and ``hidden_size`` of `FeatureAggregation`.
        attention: whether to use the self-attention unit; without it ``q = E_org`` (ablation "w/o Att").
        aggregation: whether to use the aggregation unit; without it ``q = E_att`` (ablation "w/o Org").
        gate: whether the gate fuses the two units' outputs; without it they are added (ablation "w/o Gate").

    Raises:
        InputError: if both units are left out, or ``num_heads`` does not divide ``embedding_dim``.

    Example::

        >>> FeatureTower(num_fields=6, embedding_dim=8)(torch.randn(2, 6, 8)).shape
        torch.Size([2, 6, 8])
    """

    @checked
    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        num_heads: int = 1,
        aggregation_over: Literal["embedding", "fields"] = "embedding",
        aggregation_size: int | None = None,
        attention: bool = True,
        aggregation: bool = True,
        gate: bool = True,
    ) -> None:
        super().__init__()
        check_at_least(1, num_fields=num_fields)
        check_heads(embedding_dim, num_heads)
        if not (attention or aggregation):
            raise InputError("a feature tower must keep one of its units: `attention` or `aggregation`")
        self.attention = Attention(embedding_dim, num_heads) if attention else None
        self.aggregation = (
            FeatureAggregation(num_fields, embedding_dim, aggregation_size, aggregation_over) if aggregation else None
        )
        self.gate = ComplementaryGate(embedding_dim) if gate and attention and aggregation else None

    def forward(self, fields: Tensor) -> Tensor:
        """Maps ``E [B, F, D]`` to ``q [B, F, D]``."""
        if self.aggregation is None:
            assert self.attention is not None  # one of the two exists
            return self.attention(fields, fields)
        organic = self.aggregation(fields)
        if self.attention is None:
            return organic
        attended = self.attention(fields, fields)
        return attended + organic if self.gate is None else self.gate(attended, organic)
