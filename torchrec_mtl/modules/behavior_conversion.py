"""BPCM's behaviour pattern conversion (BPC), section 3.4: the information that one task passes to the next."""

from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_share
from torchrec_mtl.modules.attention import Attention


class BehaviorPatternConversion(nn.Module):
    """One step from task ``t`` to ``t + 1``, BPCM eq. (7)-(9).

    ``h_t = Dropout(Z_t)`` and ``Z_{t+1} = Attention(q_{t+1}, h_t) + q_{t+1}``, with queries from ``q_{t+1}``, and keys
    and values from ``h_t``. The paper gives the shape of ``Z`` as ``R^I``; its equations make it ``R^{F x D}``.

    Args:
        embedding_dim: embedding dimension, ``D``.
        num_heads: number of heads of the attention; the paper has one.
        dropout: dropout probability of ``msg``, eq. (8); the paper does not give it.
        layer_norm: whether LayerNorm follows the sum; the paper's text mentions it, the equation does not.

    Raises:
        InputError: if ``dropout`` is not between 0 and 1, or ``num_heads`` does not divide ``embedding_dim``.

    Example::

        >>> import torch
        >>> step = BehaviorPatternConversion(embedding_dim=8)
        >>> step(torch.randn(2, 6, 8), torch.randn(2, 6, 8)).shape
        torch.Size([2, 6, 8])
    """

    @checked
    def __init__(self, embedding_dim: int, num_heads: int = 1, dropout: float = 0.1, layer_norm: bool = False) -> None:
        super().__init__()
        check_share(message_dropout=dropout)
        self.message = nn.Dropout(dropout)
        self.attention = Attention(embedding_dim, num_heads)
        self.norm = nn.LayerNorm(embedding_dim) if layer_norm else nn.Identity()

    def forward(self, query: Tensor, previous: Tensor) -> Tensor:
        """Maps ``q_{t+1}`` and ``Z_t``, both ``[B, F, D]``, to ``Z_{t+1} [B, F, D]``."""
        passed_on = self.message(previous)  # BPCM eq. (8)
        return self.norm(self.attention(query, passed_on) + query)  # BPCM eq. (9)
