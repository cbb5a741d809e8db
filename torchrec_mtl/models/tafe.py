"""TAFE: task-aware feature extraction for sequential dependence multi-task learning (Tao et al., 2022).

Symbols: ``H`` fields' embeddings ``fields [B, F, D]``; ``z`` selection ``[B, K]``; ``I`` inducing points
``[K, D]``; ``Y^l`` shared representations ``[B, K, D]``; ``a_i`` indicators, ``T_i^l`` adapted ``[B, T, D]``.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.models.base import MultiTaskModel
from torchrec_mtl.modules import (
    FeatureArch,
    FieldProjection,
    PooledRepresentation,
    RepresentationGenerator,
    SelfAttentionStack,
    SmoothStepSchedule,
    TaskAdapter,
    TaskAwareExtraction,
    TaskTowers,
    as_features,
    initialize_linear_layers,
)
from torchrec_mtl.tasks import TaskForest


class TAFEArch(nn.Module):
    """Representation generator (ASRG), task adapters (TSA), towers: TAFE eq. (14)-(22).

    Args:
        num_fields: ``F``.
        embedding_dim: ``D``; 18 in the paper.
        num_tasks: ``T``.
        others: see `TAFE`.

    Raises:
        InputError: see `TAFE`.

    Example::

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

    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """See `MultiTaskModel`."""
        self.towers.start_from_base_rates(base_rates)


class TAFE(MultiTaskModel):
    """`TAFEArch` on the features; train it with `torchrec_mtl.losses.DependenceLoss`, TAFE eq. (25).

    Its smooth step moves with the optimizer's steps: a loop of your own calls `torchrec_mtl.modules.advance_schedules`
    after each.

    Args:
        features: a `FeatureArch`, or the tables alone.
        tasks: ``T`` tasks.
        embedding_dim: ``D``; the widest table's by default, 18 in the paper. Fields of another dimension are projected
            to it.
        num_layers: ``L``, layers of the generator, and as many of the adapters.
        num_heads: ``m``, heads of every attention; must divide ``D``.
        num_inducing_points: ``K``, learnt points that read the fields, of which each sample selects some.
        tower_layer_sizes: hidden layers of the towers, which the paper does not give.
        dropout: probability of dropping a tower's hidden unit in training.
        selector: ``"shared"`` by all layers, or ``"per_layer"``, see `RepresentationGenerator`.
        selector_layer_sizes: hidden layers of the selector's MLP, see `DynamicSelector`.
        schedule: of the smooth step: start, rate a step and end, or ``"run"`` to reach the end at a run's last step.
        residual: what eq. (20) adds, ``"input"``, ``"query"`` or ``"none"``, see `RepresentationGenerator`.
        sample_wise: False for the ablation "w/o ASRG": plain self-attention over the fields, no selection.
        task_indicators: False for the ablation "w/o TSA": towers on the mean of the last representation.
        backend: of the attention: ``"auto"``; ``"modules"``, which calls generator and adapters as they stand, as an
            ablation always does; or one of `torchrec_mtl.ops.inducing_attention`.

    Raises:
        InputError: if ``num_heads`` does not divide ``D``, there is no layer, or a size or choice is out of its
            range.
    """

    def __init__(
        self,
        features: FeatureArch | nn.Module,
        tasks: TaskForest,
        *,
        embedding_dim: int | None = None,
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
        self.features = as_features(features)
        with torch.device(self.features.dense_device):
            self.projection = FieldProjection(self.features.field_dims, embedding_dim or self.features.widest)
            self.over_arch = TAFEArch(
                len(self.features.field_dims),
                self.projection.embedding_dim,
                len(tasks),
                num_layers=num_layers,
                num_heads=num_heads,
                num_inducing_points=num_inducing_points,
                tower_layer_sizes=tower_layer_sizes,
                dropout=dropout,
                selector=selector,
                selector_layer_sizes=selector_layer_sizes,
                schedule=schedule,
                residual=residual,
                sample_wise=sample_wise,
                task_indicators=task_indicators,
                backend=backend,
            )
        initialize_linear_layers(self.projection, self.over_arch)

    def embed(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """``[B, num_dense]`` and the sparse features to ``H [B, F, D]``."""
        return self.projection(self.features(dense_features, sparse_features))
