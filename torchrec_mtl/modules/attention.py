"""Attention between sets of fields, with learnt projections."""

from torch import Tensor, nn

from torchrec_mtl import ops
from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError, check_at_least
from torchrec_mtl.ops.attention import reference


def check_heads(embedding_dim: int, num_heads: int) -> None:
    """Raises `InputError` unless ``num_heads`` divides ``embedding_dim``, which is at least 1."""
    check_at_least(1, embedding_dim=embedding_dim)
    if num_heads < 1 or embedding_dim % num_heads:
        raise InputError(f"`num_heads` (={num_heads}) must divide `embedding_dim` (={embedding_dim})")


def _is_its_weight(layer: nn.Module) -> bool:
    """Whether the layer multiplies with its ``weight`` and does nothing else.

    Quantisation, LoRA and parametrisations change the class of a linear layer, pruning and observers hook into it.
    """
    return type(layer) is nn.Linear and not (layer._forward_hooks or layer._forward_pre_hooks)


class Attention(nn.Module):
    """Multi-head attention without biases: BPCM eq. (2)-(3), also for its eq. (9) and TAFE's self-attention ablation.

    Args:
        embedding_dim: embedding dimension, ``D``.
        num_heads: number of heads, ``m``; must divide ``D``.
        output_projection: whether a last matrix ``Wo`` mixes the heads, as in TAFE eq. (19); BPCM has none.

    Raises:
        InputError: if ``embedding_dim`` is below 1, or ``num_heads`` does not divide it.
    """

    @checked
    def __init__(self, embedding_dim: int, num_heads: int = 1, output_projection: bool = False) -> None:
        super().__init__()
        check_heads(embedding_dim, num_heads)
        self.num_heads = num_heads
        self.query = nn.Linear(embedding_dim, embedding_dim, bias=False)
        self.key = nn.Linear(embedding_dim, embedding_dim, bias=False)
        self.value = nn.Linear(embedding_dim, embedding_dim, bias=False)
        self.output = nn.Linear(embedding_dim, embedding_dim, bias=False) if output_projection else nn.Identity()

    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the weights of query, key and value, each ``[D, D]``."""
        return self.query.weight, self.key.weight, self.value.weight

    def forward(self, queries: Tensor, inputs: Tensor) -> Tensor:
        """Computes queries from ``[B, N, D]``, keys and values from ``[B, M, D]``; returns ``[B, N, D]``."""
        query, key, value = self.query, self.key, self.value
        if _is_its_weight(query) and _is_its_weight(key) and _is_its_weight(value):
            return self.output(ops.attention(queries, inputs, query.weight, key.weight, value.weight, self.num_heads))
        projected = query(queries), key(inputs), value(inputs)
        return self.output(reference.projected_attention(*projected, self.num_heads))
