"""Attention between sets of fields, with learnt projections."""

from torch import Tensor, nn

from torchrec_mtl import ops
from torchrec_mtl.modules.arguments import check_heads
from torchrec_mtl.modules.initialization import he_normal_


def reset_attention(
    queries: Tensor, key: Tensor, value: Tensor, output: Tensor, norm_weight: Tensor, norm_bias: Tensor
) -> None:
    """Draws learnt queries ``[..., N, D]`` and what goes with them, layers and tasks stacked in front.

    Squares with `he_normal_`, norms as in `torch.nn.LayerNorm`, queries as Set Transformer's (Xavier uniform).
    """
    num_queries, dim = queries.shape[-2:]
    nn.init.uniform_(queries, -((6 / (num_queries + dim)) ** 0.5), (6 / (num_queries + dim)) ** 0.5)
    for weight in (key, value, output):
        he_normal_(weight)
    nn.init.ones_(norm_weight)
    nn.init.zeros_(norm_bias)


class Attention(nn.Module):
    """Multi-head attention without biases: BPCM eq. (2)-(3), also its eq. (9) and TAFE's self-attention ablation.

    Args:
        embedding_dim: ``D``.
        num_heads: ``m``; must divide ``D``.
        output_projection: whether the heads are mixed by a last ``Wo``, as in TAFE eq. (19); BPCM has none.

    Raises:
        InputError: if ``num_heads`` does not divide ``embedding_dim``.
    """

    def __init__(self, embedding_dim: int, num_heads: int = 1, output_projection: bool = False) -> None:
        super().__init__()
        check_heads(embedding_dim, num_heads)
        self.num_heads = num_heads
        self.query = nn.Linear(embedding_dim, embedding_dim, bias=False)
        self.key = nn.Linear(embedding_dim, embedding_dim, bias=False)
        self.value = nn.Linear(embedding_dim, embedding_dim, bias=False)
        self.output = nn.Linear(embedding_dim, embedding_dim, bias=False) if output_projection else nn.Identity()

    def forward(self, queries: Tensor, inputs: Tensor) -> Tensor:
        """Queries from ``[B, N, D]``, keys and values from ``[B, M, D]``, to ``[B, N, D]``."""
        weights = (self.query.weight, self.key.weight, self.value.weight)
        return self.output(ops.attention(queries, inputs, *weights, self.num_heads))
