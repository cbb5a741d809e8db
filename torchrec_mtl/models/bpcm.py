"""BPCM: multi-task learning with features based on behavioural pattern conversation (Tang et al.).

Symbols: ``E`` fields' embeddings ``fields [B, F, D]``; ``q_t`` a feature tower's output ``queries[t]``;
``Z_t`` what a task predicts from and passes on, ``states[t]``; all ``[B, F, D]``.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from torchrec_mtl.models.base import FieldModel
from torchrec_mtl.modules import (
    BehaviorPatternConversion,
    FeatureTower,
    TaskTowers,
)


class BPCMArch(nn.Module):
    """Feature towers, conversions from task to task, prediction towers: BPCM eq. (2)-(10).

    Args:
        num_fields: ``F``.
        embedding_dim: ``D``.
        num_tasks: ``T``.
        num_heads: heads of all attentions; must divide ``D``. The paper has one.
        tower_layer_sizes: hidden layers of eq. (10)'s MLP, which the paper does not give.
        aggregation_over, aggregation_size: axis and hidden width of eq. (4), see `FeatureAggregation`.
        message_dropout, layer_norm: see `BehaviorPatternConversion`.
        dropout: probability of dropping a prediction tower's hidden unit in training.
        attention, aggregation, gate: False for the ablations "w/o Att", "w/o Org", "w/o Gate", see `FeatureTower`.
        conversion: False for the ablation "w/o BPC": ``Z_t = q_t``.

    Example::

        >>> import torch
        >>> BPCMArch(num_fields=6, embedding_dim=8, num_tasks=3)(torch.randn(2, 6, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        num_tasks: int,
        num_heads: int = 1,
        tower_layer_sizes: Sequence[int] = (128, 64),
        aggregation_over: Literal["embedding", "fields"] = "embedding",
        aggregation_size: int | None = None,
        message_dropout: float = 0.1,
        layer_norm: bool = False,
        dropout: float = 0.0,
        attention: bool = True,
        aggregation: bool = True,
        gate: bool = True,
        conversion: bool = True,
    ) -> None:
        super().__init__()
        self.shape = (num_fields, embedding_dim)
        self.feature_towers = nn.ModuleList(
            FeatureTower(
                num_fields, embedding_dim, num_heads, aggregation_over, aggregation_size, attention, aggregation, gate
            )
            for _ in range(num_tasks)
        )
        self.conversions = nn.ModuleList(
            BehaviorPatternConversion(embedding_dim, num_heads, message_dropout, layer_norm)
            for _ in range(num_tasks - 1 if conversion else 0)
        )
        self.towers = TaskTowers(num_tasks, num_fields * embedding_dim, tower_layer_sizes, dropout)

    def forward(self, embeddings: Tensor) -> Tensor:
        """``[B, F, D]`` or ``[B, F * D]`` to logits ``[B, T]``."""
        fields = embeddings.reshape(-1, *self.shape)
        queries = [tower(fields) for tower in self.feature_towers]
        states = queries
        if self.conversions:
            states = queries[:1]
            for convert, query in zip(self.conversions, queries[1:], strict=True):
                states.append(convert(query, states[-1]))
        return self.towers([state.flatten(1) for state in states])


class BPCM(FieldModel):
    """`BPCMArch` on the embeddings; train it with `torchrec_mtl.losses.CalibratedLoss`, BPCM eq. (13).

    Args: those of `FieldModel`, then `BPCMArch`'s.

    Raises:
        InputError: if ``num_heads`` does not divide ``embedding_dim``.
    """

    over_arch_class = BPCMArch
