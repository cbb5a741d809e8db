"""Tables of a rank on the CPU, looked up and updated by the kernels of `torchrec_mtl.ops.embedding_bag`.

fbgemm's Adagrad takes several times as long there, and its Adam does not run there. The module is a subclass of
fbgemm's, whose storage, states and names of states stay: all that TorchRec does with one, it does with the other.
"""

from collections.abc import Sequence
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    SplitTableBatchedEmbeddingBagsCodegen,
    construct_split_state,
)
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from torchrec_mtl.ops import embedding_bag

ADAMS = {EmbOptimType.ADAM: "adam", EmbOptimType.PARTIAL_ROWWISE_ADAM: "rowwise_adam"}
_OPTIMIZERS = {
    EmbOptimType.EXACT_SGD: "sgd",
    EmbOptimType.EXACT_ADAGRAD: "adagrad",
    EmbOptimType.EXACT_ROWWISE_ADAGRAD: "rowwise_adagrad",
    **ADAMS,
}
_SETTINGS = {"learning_rate", "eps", "beta1", "beta2", "weight_decay", "cache_precision"}
_SETTINGS |= {"feature_table_map", "pooling_mode", "device", "table_names", "embedding_shard_info", "res_params"}
_Specs = list[tuple[int, int, Any, Any]]  # rows and columns of each table, and where it is


class TouchedRows(SplitTableBatchedEmbeddingBagsCodegen):
    """fbgemm's module of the tables of a rank, in float32 on the CPU, with other kernels.

    A step of Adam is a backward pass; fbgemm counts forward passes, those of evaluation too.
    """

    def __init__(
        self, embedding_specs: _Specs, optimizer: EmbOptimType = EmbOptimType.EXACT_SGD, **settings: Any
    ) -> None:
        is_adam = optimizer in ADAMS  # which fbgemm does not make on a CPU
        super().__init__(embedding_specs, optimizer=EmbOptimType.EXACT_ADAGRAD if is_adam else optimizer, **settings)
        self.optimizer = optimizer
        if is_adam:
            is_rowwise = optimizer == EmbOptimType.PARTIAL_ROWWISE_ADAM
            second = construct_split_state(embedding_specs, rowwise=is_rowwise, cacheable=False)
            self._apply_split(second, prefix="momentum2", dtype=torch.float32)
        self.tables = self.split_embedding_weights()
        self.states = list(zip(*self.split_optimizer_states(), strict=True))
        is_pooled = self.pooling_mode != PoolingMode.NONE
        self.table_of_key = self.feature_table_map if is_pooled else list(range(len(self.tables)))  # see `_rows`
        self.keys = list(range(len(self.table_of_key)))
        self.means = [self.pooling_mode == PoolingMode.MEAN] * len(self.keys)

    def forward(
        self, indices: Tensor, offsets: Tensor, per_sample_weights: Tensor | None = None, **others: Any
    ) -> Tensor:
        """The pooled rows ``[B, sum(D_f)]``, or each row ``[V, D]``; what has no kernel of ours is fbgemm's."""
        if self.pooling_mode == PoolingMode.NONE and not others:
            return self._rows(indices, offsets)
        if others or (per_sample_weights is not None and per_sample_weights.requires_grad):
            return super().forward(indices, offsets, per_sample_weights, **others)
        return self.pooled(self.keys, indices, offsets, (len(offsets) - 1) // len(self.keys), per_sample_weights)

    def _rows(self, ids: Tensor, offsets: Tensor) -> Tensor:
        """The row of each id: a bag for each of a table's ids, whose features lie side by side."""
        batch = (len(offsets) - 1) // len(self.feature_table_map)
        features = torch.bincount(torch.tensor(self.feature_table_map), minlength=len(self.tables))
        ends = offsets[batch * F.pad(features.cumsum(0), (1, 0))]
        counts = ends.diff()
        longest = int(counts.max())
        bags = ends[:-1, None] + torch.minimum(torch.arange(longest), counts[:, None])  # the last are empty
        rows = self.pooled(self.keys, ids, torch.cat([bags.flatten(), ends[-1:]]), longest, None)
        of_tables = rows.split([table.shape[1] for table in self.tables], 1)
        return torch.cat([part[:count] for part, count in zip(of_tables, counts.tolist(), strict=True)])

    def pooled(self, keys: Sequence[int], ids: Tensor, offsets: Tensor, batch: int, weights: Tensor | None) -> Tensor:
        """The pooled rows of the features that are at the positions ``keys`` of a batch: see `embedding_bag.lookup`."""
        weights = None if weights is None else weights.float()
        bags = (self.table_of_key, keys, self.means, ids, offsets, batch, weights)
        if torch.is_grad_enabled():
            return _Pooled.apply(self.placeholder_autograd_tensor, self, *bags)
        return embedding_bag.lookup(self.tables, *bags)

    def step_from(self, gradient: Tensor, *bags: Any) -> None:
        """Takes a step of the optimizer from the gradient of the pooled rows of ``bags``."""
        settings = self.optimizer_args
        *lists, weights = bags
        embedding_bag.update(  # type: ignore[misc]
            self.tables,
            self.states,
            *lists,
            gradient=gradient,
            optimizer=_OPTIMIZERS[self.optimizer],
            learning_rate=self.get_learning_rate(),
            eps=settings.eps,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
            step=int(self.iter.add_(1)) if self.optimizer in ADAMS else 1,
            weights=weights,
        )


class _Pooled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _: Tensor, tables: TouchedRows, *bags: Any) -> Tensor:
        ctx.tables, ctx.bags = tables, bags
        return embedding_bag.lookup(tables.tables, *bags)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        ctx.tables.step_from(gradient, *ctx.bags)
        return (None,) * (2 + len(ctx.bags))


def table_batched(
    embedding_specs: _Specs,
    optimizer: EmbOptimType = EmbOptimType.EXACT_SGD,
    weights_precision: SparseType = SparseType.FP32,
    enable_raw_embedding_streaming: bool = False,
    **settings: Any,
) -> SplitTableBatchedEmbeddingBagsCodegen:
    """`TouchedRows`, or fbgemm's module where its arguments ask for what the kernels do not have."""
    is_plain = weights_precision == SparseType.FP32 and not enable_raw_embedding_streaming
    if is_plain and optimizer in _OPTIMIZERS and settings.keys() <= _SETTINGS:
        return TouchedRows(embedding_specs, optimizer, **settings)
    settings |= {"weights_precision": weights_precision}
    settings |= {"enable_raw_embedding_streaming": enable_raw_embedding_streaming}
    return SplitTableBatchedEmbeddingBagsCodegen(embedding_specs, optimizer=optimizer, **settings)
