"""Sharded tables on the CPU, looked up and updated by the kernels of `torchrec_mtl.ops.embedding_bag`.

fbgemm's Adagrad takes several times as long there, and its Adam does not run there. All of TorchRec's modules stay; the
table-batched module in them is a subclass of fbgemm's, whose storage, states and names of states it keeps.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from torchrec.distributed import batched_embedding_kernel
from torchrec.distributed.batched_embedding_kernel import BatchedFusedEmbeddingBag
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
from torchrec.distributed.types import LazyAwaitable, LazyNoWait, ParameterSharding, ShardingEnv
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from torchrec_mtl.ops import embedding_bag, library
from torchrec_mtl.training.config import SHARDINGS

_ADAMS = {EmbOptimType.ADAM: "adam", EmbOptimType.PARTIAL_ROWWISE_ADAM: "rowwise_adam"}
_OPTIMIZERS = {
    EmbOptimType.EXACT_SGD: "sgd",
    EmbOptimType.EXACT_ADAGRAD: "adagrad",
    EmbOptimType.EXACT_ROWWISE_ADAGRAD: "rowwise_adagrad",
    **_ADAMS,
}
_SETTINGS = {"learning_rate", "eps", "beta1", "beta2", "weight_decay", "cache_precision"}
_SETTINGS |= {"feature_table_map", "pooling_mode", "device", "table_names", "embedding_shard_info", "res_params"}


class TouchedRows(SplitTableBatchedEmbeddingBagsCodegen):
    """fbgemm's module of the tables of a rank, in float32 on the CPU, with other kernels.

    A backward pass is a step of Adam; fbgemm counts forward passes, those of evaluation too.
    """

    def __init__(
        self,
        embedding_specs: list[tuple[int, int, Any, Any]],
        optimizer: EmbOptimType = EmbOptimType.EXACT_SGD,
        **settings: Any,
    ) -> None:
        is_adam = optimizer in _ADAMS  # which fbgemm does not make on a CPU
        super().__init__(embedding_specs, optimizer=EmbOptimType.EXACT_ADAGRAD if is_adam else optimizer, **settings)
        self.optimizer = optimizer
        if is_adam:
            is_rowwise = optimizer == EmbOptimType.PARTIAL_ROWWISE_ADAM
            second = construct_split_state(embedding_specs, rowwise=is_rowwise, cacheable=False)
            self._apply_split(second, prefix="momentum2", dtype=torch.float32)
        self.tables = self.split_embedding_weights()
        self.states = list(zip(*self.split_optimizer_states(), strict=True))
        self.keys = list(range(len(self.feature_table_map)))
        self.means = [self.pooling_mode == PoolingMode.MEAN] * len(self.keys)

    def forward(
        self, indices: Tensor, offsets: Tensor, per_sample_weights: Tensor | None = None, **others: Any
    ) -> Tensor:
        """The pooled rows ``[B, sum(D_f)]``."""
        if others or (per_sample_weights is not None and per_sample_weights.requires_grad):
            return super().forward(indices, offsets, per_sample_weights, **others)
        return self.pooled(self.keys, indices, offsets, (len(offsets) - 1) // len(self.keys), per_sample_weights)

    def pooled(self, keys: Sequence[int], ids: Tensor, offsets: Tensor, batch: int, weights: Tensor | None) -> Tensor:
        """The pooled rows of features at the positions ``keys`` of a batch; see `embedding_bag.lookup`."""
        weights = None if weights is None else weights.float()
        bags = (self.feature_table_map, keys, self.means, ids, offsets, batch, weights)
        if torch.is_grad_enabled():
            return _Pooled.apply(self.placeholder_autograd_tensor, self, *bags)
        return embedding_bag.lookup(self.tables, *bags)

    def step_from(self, gradient: Tensor, *bags: Any) -> None:
        """Takes a step of the optimizer from the gradient of the pooled rows of ``bags``."""
        self.iter += 1
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
            step=int(self.iter),
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


def _table_batched(
    embedding_specs: list[tuple[int, int, Any, Any]],
    optimizer: EmbOptimType = EmbOptimType.EXACT_SGD,
    weights_precision: SparseType = SparseType.FP32,
    enable_raw_embedding_streaming: bool = False,
    **settings: Any,
) -> SplitTableBatchedEmbeddingBagsCodegen:
    """`TouchedRows`, or fbgemm's own where a setting asks for what these have not."""
    is_known = weights_precision == SparseType.FP32 and not enable_raw_embedding_streaming
    if is_known and optimizer in _OPTIMIZERS and settings.keys() <= _SETTINGS:
        return TouchedRows(embedding_specs, optimizer, **settings)
    settings |= {"weights_precision": weights_precision}
    settings |= {"enable_raw_embedding_streaming": enable_raw_embedding_streaming}
    return SplitTableBatchedEmbeddingBagsCodegen(embedding_specs, optimizer=optimizer, **settings)


@contextmanager
def _made_by(make: Any) -> Iterator[None]:
    """Within it, TorchRec's kernels make their table-batched modules by ``make``."""
    fbgemms = batched_embedding_kernel.SplitTableBatchedEmbeddingBagsCodegen
    batched_embedding_kernel.SplitTableBatchedEmbeddingBagsCodegen = make
    try:
        yield
    finally:
        batched_embedding_kernel.SplitTableBatchedEmbeddingBagsCodegen = fbgemms


class ShardedTables(ShardedEmbeddingBagCollection):
    """TorchRec's sharded collection, with `TouchedRows` on the CPU if the kernels are built.

    The number of steps that Adam has taken is a state of its tables, so that checkpoints have it. One rank alone looks
    up at once: TorchRec would send its ids and its rows to the rank itself.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._parts = self._parts_of_one_rank()
        self._keys: list[str] = []  # of the last batch
        self._positions: list[list[int]] = []  # of each part's features among them

    def _parts_of_one_rank(self) -> list[tuple[TouchedRows, list[str]]]:
        """The tables and their features, if their pooled rows side by side are the collection's; none if not."""
        if self._env.world_size > 1 or self._has_mean_pooling_callback or self.qcomm_codecs_registry:
            return []
        kernels = [kernel for lookup in self._lookups for kernel in getattr(lookup, "_emb_modules", [None])]
        if not all(isinstance(getattr(kernel, "emb_module", None), TouchedRows) for kernel in kernels):
            return []
        tables = [kernel.config.embedding_tables for kernel in kernels]
        names = [name for part in tables for table in part for name in table.embedding_names]
        if not names == self._embedding_names == self._uncombined_embedding_names:
            return []
        features = [[name for table in part for name in table.feature_names] for part in tables]
        return [(kernel.emb_module, names) for kernel, names in zip(kernels, features, strict=True)]

    def forward(self, *inputs: Any, **named: Any) -> LazyAwaitable[KeyedTensor]:
        """The pooled rows by feature."""
        features = inputs[0] if len(inputs) == 1 and not named else None
        if not self._parts or not isinstance(features, KeyedJaggedTensor) or features.variable_stride_per_key():
            return super().forward(*inputs, **named)
        if self.post_lookup_tracker_fn is not None or self.post_odist_tracker_fn is not None:
            return super().forward(*inputs, **named)
        keys = features.keys()
        if keys != self._keys:
            if not all(name in keys for _, names in self._parts for name in names):
                return super().forward(*inputs, **named)  # which tells what is missing
            self._keys, self._positions = list(keys), [[keys.index(n) for n in names] for _, names in self._parts]
        weights = features.weights_or_none()
        bags = features.values(), features.offsets(), features.stride(), weights
        pooled = [part.pooled(at, *bags) for (part, _), at in zip(self._parts, self._positions, strict=True)]
        values = pooled[0] if len(pooled) == 1 else torch.cat(pooled, 1)
        return LazyNoWait(KeyedTensor(self._embedding_names, self._embedding_dims, values))

    def _create_lookups(self) -> None:
        own = self._device is not None and self._device.type == "cpu" and library.load()
        with _made_by(_table_batched if own else SplitTableBatchedEmbeddingBagsCodegen):
            super()._create_lookups()
        for lookup in self._lookups:
            for kernel in lookup._emb_modules:  # type: ignore[union-attr]
                if isinstance(kernel, BatchedFusedEmbeddingBag) and kernel.emb_module.optimizer in _ADAMS:
                    optimizer = kernel.fused_optimizer
                    for name, weight in optimizer.params.items():
                        optimizer.state[weight][f"{name.removesuffix('.weight')}.step"] = kernel.emb_module.iter


class TableSharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder with every type on the CPU too, where TorchRec runs row-wise types but does not offer them."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """All sharding types."""
        return list(SHARDINGS[1:])

    def shard(
        self,
        module: EmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedTables:
        """The part of the collection that this rank has."""
        codecs = self.qcomm_codecs_registry
        return ShardedTables(module, params, env, self.fused_params, device, codecs, module_fqn)
