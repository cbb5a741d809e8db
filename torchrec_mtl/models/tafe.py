"""TAFE: task-aware feature extraction for sequential dependence multi-task learning (Tao et al., 2022).

Symbols: ``H`` fields' embeddings ``fields [B, F, D]``; ``z`` selection ``[B, K]``; ``I`` inducing points
``[K, D]``; ``Y^l`` shared representations ``[B, K, D]``; ``a_i`` indicators, ``T_i^l`` adapted ``[B, T, D]``.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from torchrec_mtl.models.base import FieldModel
from torchrec_mtl.modules import (
    PooledRepresentation,
    RepresentationGenerator,
    SelfAttentionStack,
    SmoothStepSchedule,
    TaskAdapter,
    TaskAwareExtraction,
    TaskTowers,
)


class TAFEArch(nn.Module):
    """Representation generator (ASRG), task adapters (TSA), towers: TAFE eq. (14)-(22).

    Args:
        num_fields: ``F``.
        embedding_dim: ``D``; 18 in the paper.
        num_tasks: ``T``.
        num_layers: ``L``, of generator and adapters alike.
        num_heads: ``m``; must divide ``D``.
        num_inducing_points: ``K``.
        tower_layer_sizes: hidden layers of the towers, which the paper does not give.
        dropout: probability of dropping a tower's hidden unit in training.
        selector, selector_layer_sizes, schedule, residual: see `RepresentationGenerator`.
        sample_wise: False for the ablation "w/o ASRG": plain self-attention over the fields, no selection.
        task_indicators: False for the ablation "w/o TSA": towers on the mean of the last representation.
        backend: see `TaskAwareExtraction`; an ablation always calls its modules.

    Raises:
        InputError: if an argument is outside the values of the module that takes it.

    Example::

        >>> import torch
        >>> TAFEArch(num_fields=6, embedding_dim=8, num_tasks=3)(torch.randn(2, 6, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        num_tasks: int,
        *,
        num_layers: int = 4,
        num_heads: int = 2,
        num_inducing_points: int = 64,
        tower_layer_sizes: Sequence[int] = (64, 32),
        dropout: float = 0.0,
        selector: Literal["shared", "per_layer"] = "shared",
        selector_layer_sizes: Sequence[int] = (64,),
        schedule: SmoothStepSchedule | tuple[float, float, float] | Literal["run"] = SmoothStepSchedule(),
        residual: Literal["input", "query", "none"] = "input",
        sample_wise: bool = True,
        task_indicators: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.shape = (num_fields, embedding_dim)
        generator = RepresentationGenerator(
            num_fields,
            embedding_dim,
            num_layers,
            num_heads,
            num_inducing_points,
            selector,
            selector_layer_sizes,
            schedule,
            residual,
        )
        adapter = TaskAdapter(num_tasks, embedding_dim, num_layers, num_heads)
        self.extraction: nn.Module = TaskAwareExtraction(generator, adapter, backend)
        if not (sample_wise and task_indicators):  # an ablation exchanges it
            shared = generator if sample_wise else SelfAttentionStack(embedding_dim, num_layers, num_heads)
            adapted = adapter if task_indicators else PooledRepresentation(num_tasks)
            self.extraction = nn.Sequential(OrderedDict(generator=shared, adapter=adapted))
        self.towers = TaskTowers(num_tasks, embedding_dim, tower_layer_sizes, dropout)

    def forward(self, embeddings: Tensor) -> Tensor:
        """``[B, F, D]`` or ``[B, F * D]`` to logits ``[B, T]``."""
        fields = embeddings.reshape(-1, *self.shape)
        return self.towers(self.extraction(fields).unbind(1))


class TAFE(FieldModel):
    """`TAFEArch` on the embeddings; train it with `torchrec_mtl.losses.DependenceLoss`, TAFE eq. (25).

    Args: those of `FieldModel`, then `TAFEArch`'s.

    Raises:
        InputError: see `TAFEArch`.
    """

    over_arch: TAFEArch
    over_arch_class = TAFEArch
