"""TorchRec's sharded collections with `TouchedRows` on the CPU, and a short way where there is one rank."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torchrec.distributed import batched_embedding_kernel
from torchrec.distributed.batched_embedding_kernel import BatchedFusedEmbedding, BatchedFusedEmbeddingBag
from torchrec.distributed.embedding import EmbeddingCollectionSharder, ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
from torchrec.distributed.types import LazyAwaitable, LazyNoWait, ParameterSharding, QuantizedCommCodecs, ShardingEnv
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from torchrec_mtl.ops import library
from torchrec_mtl.ops.backends import log_choice
from torchrec_mtl.training.config import SHARDINGS
from torchrec_mtl.training.touched_rows import ADAMS, TouchedRows, table_batched


@contextmanager
def _table_batched_modules(make: Any) -> Iterator[None]:
    """Within it, TorchRec makes its table-batched modules by ``make``; it names fbgemm's class in one place."""
    fbgemms = batched_embedding_kernel.SplitTableBatchedEmbeddingBagsCodegen
    batched_embedding_kernel.SplitTableBatchedEmbeddingBagsCodegen = make
    try:
        yield
    finally:
        batched_embedding_kernel.SplitTableBatchedEmbeddingBagsCodegen = fbgemms


class _WithTouchedRows:
    """What makes a sharded collection of TorchRec's one with `TouchedRows` on the CPU if the kernels are built.

    The number of steps that Adam has taken is a state of its tables, so that checkpoints have it.
    """

    _device: torch.device | None
    _lookups: list[Any]

    def _create_lookups(self) -> None:
        on_cpu = self._device is not None and self._device.type == "cpu"
        if on_cpu and library.load():
            log_choice("sharded tables", "cpp", "it is faster")
            with _table_batched_modules(table_batched):
                super()._create_lookups()  # type: ignore[misc]
        else:
            reason = "the C++ kernels are not built" if on_cpu else "the C++ kernels run on the CPU only"
            log_choice("sharded tables", "fbgemm", reason)
            super()._create_lookups()  # type: ignore[misc]
        kernels = [kernel for lookup in self._lookups for kernel in lookup._emb_modules]
        for kernel in kernels:
            if (
                isinstance(kernel, (BatchedFusedEmbeddingBag, BatchedFusedEmbedding))
                and kernel.emb_module.optimizer in ADAMS
            ):
                optimizer = kernel.fused_optimizer
                for name, weight in optimizer.params.items():
                    optimizer.state[weight][f"{name.removesuffix('.weight')}.step"] = kernel.emb_module.iter


class ShardedRows(_WithTouchedRows, ShardedEmbeddingCollection):
    """TorchRec's sharded collection of rows that are not pooled."""


class ShardedTables(_WithTouchedRows, ShardedEmbeddingBagCollection):
    """TorchRec's sharded collection of pooled rows.

    One rank alone looks up at once, where TorchRec would exchange ids and rows between the rank and itself.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._parts = self._parts_of_one_rank()
        self._keys: list[str] = []  # of the last batch
        self._positions: list[list[int]] = []  # of each part's features among them

    def _parts_of_one_rank(self) -> list[tuple[TouchedRows, list[str]]]:
        """The modules and their features, if their pooled rows side by side are the collection's; none if not."""
        if self._env.world_size > 1 or self._has_mean_pooling_callback or self.qcomm_codecs_registry:
            return []
        kernels = [kernel for lookup in self._lookups for kernel in getattr(lookup, "_emb_modules", [None])]
        if not all(isinstance(getattr(kernel, "emb_module", None), TouchedRows) for kernel in kernels):
            return []
        tables = [kernel.config.embedding_tables for kernel in kernels]
        names = [name for part in tables for table in part for name in table.embedding_names]
        if not names == self._embedding_names == self._uncombined_embedding_names:  # columns are split
            return []
        features = [[name for table in part for name in table.feature_names] for part in tables]
        return [(kernel.emb_module, names) for kernel, names in zip(kernels, features, strict=True)]

    def forward(self, *inputs: Any, **named: Any) -> LazyAwaitable[KeyedTensor]:
        """The pooled rows of each feature."""
        values = self.at_once(inputs[0]) if len(inputs) == 1 and not named else None
        if values is None:
            return super().forward(*inputs, **named)
        return LazyNoWait(KeyedTensor(self._embedding_names, self._embedding_dims, values))

    def at_once(self, features: Any) -> Tensor | None:
        """The values of what a call returns, if they need no exchange and no other code; None otherwise."""
        is_tracked = self.post_lookup_tracker_fn is not None or self.post_odist_tracker_fn is not None
        if not self._parts or is_tracked or not self._find_keys(features):
            return None
        bags = features.values(), features.offsets(), features.stride(), features.weights_or_none()
        pooled = [part.pooled(at, *bags) for (part, _), at in zip(self._parts, self._positions, strict=True)]
        return pooled[0] if len(pooled) == 1 else torch.cat(pooled, 1)

    def _find_keys(self, features: Any) -> bool:
        """Whether it is a plain batch that has all features; notes where."""
        if not isinstance(features, KeyedJaggedTensor) or features.variable_stride_per_key():
            return False
        keys = features.keys()
        if keys != self._keys:
            if not all(name in keys for _, names in self._parts for name in names):
                return False
            self._keys, self._positions = list(keys), [[keys.index(n) for n in names] for _, names in self._parts]
        return True


class TableSharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder with every type on the CPU too, where TorchRec runs row-wise types but does not offer them."""

    def __init__(self, qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None) -> None:
        super().__init__(qcomm_codecs_registry=qcomm_codecs_registry)

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


class RowSharder(EmbeddingCollectionSharder):
    """TorchRec's sharder of rows that are not pooled."""

    def __init__(self, qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None) -> None:
        super().__init__(qcomm_codecs_registry=qcomm_codecs_registry)

    def shard(
        self,
        module: EmbeddingCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedRows:
        """The part of the collection that this rank has."""
        codecs = self.qcomm_codecs_registry
        return ShardedRows(module, params, env, self.fused_params, device, codecs, module_fqn=module_fqn)
