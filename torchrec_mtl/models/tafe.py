"""TAFE: task-aware feature extraction for sequential dependence multi-task learning (Tao et al., 2022).

Symbols: ``H``, the embeddings of the fields, is ``fields [B, F, D]``; ``z`` is the selection ``[B, K]``; ``I`` are the
inducing points ``[K, D]``; ``Y^l`` are the shared representations ``[B, K, D]``; ``a_i`` are the task indicators;
``T_i^l`` are the adapted representations ``[B, T, D]``, or ``[B, T * I, D]`` with ``I`` indicators a task.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError, check_choice
from torchrec_mtl.models.base import MultiTaskModel
from torchrec_mtl.modules import (
    FeatureArch,
    FieldProjection,
    MarginalFromConditional,
    PooledRepresentation,
    RepresentationGenerator,
    SelfAttentionStack,
    SmoothStepSchedule,
    TaskAdapter,
    TaskAwareExtraction,
    TaskTowers,
    as_features,
    conditional_rates,
    give_heads,
    initialize_linear_layers,
)
from torchrec_mtl.modules.tracing import unbind
from torchrec_mtl.tasks import TaskForest


class TAFEArch(nn.Module):
    """Representation generator (ASRG), task adapters (TSA) and towers: TAFE eq. (14)-(22).

    Args:
        num_fields: number of fields, ``F``.
        embedding_dim: embedding dimension, ``D``; 18 in the paper.
        num_tasks: number of tasks, ``T``.
        tasks: the tasks, where ``probabilities`` are "conditional".
        other arguments: see `TAFE`.

    Attributes:
        output_names: names of the tensors that `outputs` returns: the ``logits [B, T]`` and, with
            ``probabilities`` "conditional", the ``conditional_logits [B, T]``.

    Raises:
        InputError: see `TAFE`.

    Example::

        >>> TAFEArch(num_fields=6, embedding_dim=8, num_tasks=3)(torch.randn(2, 6, 8)).shape
        torch.Size([2, 3])
    """

    @checked
    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        num_tasks: int,
        tasks: TaskForest | None = None,
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
        selection: Literal["keys", "mask"] = "keys",
        sample_wise: bool = True,
        task_indicators: bool = True,
        num_indicators: int = 1,
        adapter_output_projection: bool = True,
        probabilities: Literal["marginal", "conditional"] = "marginal",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_choice("probabilities", probabilities, ("marginal", "conditional"))
        self.shape, self.num_tasks = (num_fields, embedding_dim), num_tasks
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
            selection,
        )
        adapter = TaskAdapter(
            num_tasks, embedding_dim, num_layers, num_heads, num_indicators, adapter_output_projection
        )
        self.extraction: nn.Module = TaskAwareExtraction(generator, adapter, backend)
        if not (sample_wise and task_indicators):  # an ablation replaces one of the two
            shared = generator if sample_wise else SelfAttentionStack(embedding_dim, num_layers, num_heads)
            adapted = adapter if task_indicators else PooledRepresentation(num_tasks, sample_wise and generator.masked)
            self.extraction = nn.Sequential(OrderedDict(generator=shared, adapter=adapted))
        self.num_indicators = num_indicators if task_indicators else 1
        self.towers = TaskTowers(num_tasks, self.num_indicators * embedding_dim, tower_layer_sizes, dropout)
        self.funnel: TaskForest | None = None
        self.marginal: nn.Module | None = None
        self.output_names: tuple[str, ...] = ("logits",)
        if probabilities == "conditional":
            if tasks is None or len(tasks) != num_tasks:
                raise InputError(f"`tasks` (={tasks}) must be {num_tasks} tasks for conditional `probabilities`")
            tasks.require_edges("conditional `probabilities`")
            self.funnel, self.marginal = tasks.funnel, MarginalFromConditional(tasks)
            self.output_names = ("logits", "conditional_logits")

    def forward(self, embeddings: Tensor) -> Tensor:
        """Maps ``[B, F, D]`` or ``[B, F * D]`` to logits ``[B, T]``."""
        logits = self._towers(embeddings)
        return logits if self.marginal is None else self.marginal(logits)

    def outputs(self, embeddings: Tensor) -> dict[str, Tensor]:
        """Maps ``[B, F, D]`` or ``[B, F * D]`` to the tensors named in `output_names`."""
        logits = self._towers(embeddings)
        if self.marginal is None or self.funnel is None:
            return {"logits": logits}
        return {"logits": self.marginal(logits), "conditional_logits": logits[:, : len(self.funnel)]}

    def _towers(self, embeddings: Tensor) -> Tensor:
        fields = embeddings.reshape(-1, *self.shape)
        adapted = self.extraction(fields)
        if self.num_indicators > 1:
            adapted = adapted.reshape(-1, self.num_tasks, self.num_indicators * self.shape[1])
        return self.towers(unbind(adapted, self.num_tasks))

    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """See `MultiTaskModel`."""
        rates = base_rates if self.funnel is None else conditional_rates(base_rates, self.funnel.parents)
        self.towers.start_from_base_rates(rates)


class TAFE(MultiTaskModel):
    """`TAFEArch` on top of the features. Train it with `torchrec_mtl.losses.DependenceLoss`, TAFE eq. (25).

    The smooth step sharpens with every optimizer step. In a training loop of your own, call
    `torchrec_mtl.modules.advance_schedules` after each optimizer step.

    Args:
        features: a `FeatureArch`, or a bare embedding bag collection where there are no dense features.
        tasks: the ``T`` tasks.
        embedding_dim: embedding dimension, ``D``; the widest table's by default, 18 in the paper. Fields of any other
            dimension are projected to it.
        num_layers: number of layers, ``L``, of the generator and of the adapters.
        num_heads: number of heads, ``m``, in every attention; must divide ``D``.
        num_inducing_points: number of inducing points, ``K``: learnt queries of the fields, of which each sample
            selects some.
        tower_layer_sizes: hidden layer widths of each tower; the paper does not give them.
        dropout: probability of dropping a hidden unit of a tower during training.
        selector: ``"shared"`` for one selector in all layers, or ``"per_layer"`` for one in each, see
            `RepresentationGenerator`.
        selector_layer_sizes: hidden layer widths of the selector's MLP, see `DynamicSelector`.
        schedule: width of the smooth step over training, as start, decrease per step, and end; or ``"run"`` to reach
            the paper's end at the last step of the run.
        residual: term that eq. (20) adds, ``"input"``, ``"query"`` or ``"none"``, see `RepresentationGenerator`.
        selection: what a point at z = 0 is. By eq. (17)-(22), ``"keys"``, its query is 0, it reads the mean of the
            fields, and later layers and the adapters attend to its row as to any other. By section 4.4, where 0 means
            "no interaction", ``"mask"``, they do not: a row's score as a key gets ``+ log z``, so a point leaves
            continuously as its z goes to 0, and nothing is attended to where a sample selects no point.
        sample_wise: False for the ablation "w/o ASRG": plain self-attention over the fields, without selection.
        task_indicators: False for the ablation "w/o TSA": every tower reads the mean of the last representation.
        num_indicators: number of indicators of each task, ``I``. One, as in the paper, gives a tower one vector ``[D]``
            of what its task reads; several, which share keys, values and norm, give it ``[I * D]``.
        adapter_output_projection: whether the adapters have a matrix ``W^O``: eq. (21) names the attention of eq. (18),
            whose heads eq. (19) mixes by it, or, with False, does not. Both have no effect without task indicators.
        probabilities: what a tower gives: ``"marginal"``, p(task), as in the paper; or ``"conditional"``, p(task | step
            before), multiplied along the funnel as in ESMM, so that no task is likelier than the one it needs. Then it
            can be trained with `torchrec_mtl.losses.ExitDepthLoss` too.
        backend: implementation of the attention: ``"auto"``; ``"modules"``, which calls the generator and the adapters
            themselves, as the ablations always do; or a backend of `torchrec_mtl.ops.inducing_attention`.

    Raises:
        InputError: if ``num_heads`` does not divide ``D``, there is no layer, a size is out of range, or a choice is
            not one of the above.
    """

    @checked
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
        selection: Literal["keys", "mask"] = "keys",
        sample_wise: bool = True,
        task_indicators: bool = True,
        num_indicators: int = 1,
        adapter_output_projection: bool = True,
        probabilities: Literal["marginal", "conditional"] = "marginal",
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
                tasks,
                num_layers=num_layers,
                num_heads=num_heads,
                num_inducing_points=num_inducing_points,
                tower_layer_sizes=tower_layer_sizes,
                dropout=dropout,
                selector=selector,
                selector_layer_sizes=selector_layer_sizes,
                schedule=schedule,
                residual=residual,
                selection=selection,
                sample_wise=sample_wise,
                task_indicators=task_indicators,
                num_indicators=num_indicators,
                adapter_output_projection=adapter_output_projection,
                probabilities=probabilities,
                backend=backend,
            )
        initialize_linear_layers(self.projection, self.over_arch)
        give_heads(self.over_arch, tasks)

    def embed(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """Maps ``[B, num_dense]`` and the sparse features to ``H [B, F, D]``."""
        return self.projection(self.features(dense_features, sparse_features))
