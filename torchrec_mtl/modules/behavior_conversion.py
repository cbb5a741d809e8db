"""BPCM's behaviour pattern conversion (BPC), section 3.4: the information that one task passes to the next."""

from typing import Literal

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_choice, check_share
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
        attends_to: what keys and values come from: ``"message"``, ``h_t`` alone as in eq. (9); or ``"both"``, ``h_t``
            and ``q_{t+1}``, as the text can be read, by which the attention weighs the information that is passed on
            against the task's own.

    Raises:
        InputError: if ``dropout`` is not between 0 and 1, ``num_heads`` does not divide ``embedding_dim``, or
            ``attends_to`` is neither of the two.

    Example::

        >>> step = BehaviorPatternConversion(embedding_dim=8)
        >>> step(torch.randn(2, 6, 8), torch.randn(2, 6, 8)).shape
        torch.Size([2, 6, 8])
    """

    @checked
    def __init__(
        self,
        embedding_dim: int,
        num_heads: int = 1,
        dropout: float = 0.1,
        layer_norm: bool = False,
        attends_to: Literal["message", "both"] = "message",
    ) -> None:
        super().__init__()
        check_share(message_dropout=dropout)
        check_choice("attends_to", attends_to, ("message", "both"))
        self.attends_to = attends_to
        self.message = nn.Dropout(dropout)
        self.attention = Attention(embedding_dim, num_heads)
        self.norm = nn.LayerNorm(embedding_dim) if layer_norm else nn.Identity()

    def forward(self, query: Tensor, previous: Tensor) -> Tensor:
        """Maps ``q_{t+1}`` and ``Z_t``, both ``[B, F, D]``, to ``Z_{t+1} [B, F, D]``."""
        passed_on = self.message(previous)  # BPCM eq. (8)
        if self.attends_to == "both":
            passed_on = torch.cat([passed_on, query], dim=1)
        return self.norm(self.attention(query, passed_on) + query)  # BPCM eq. (9)
