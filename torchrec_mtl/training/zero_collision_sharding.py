"""Shards tables for ids without a vocabulary by row, with an eviction that works on every device.

TorchRec's own eviction calls an operator of fbgemm that the CPU does not have, and only for row-wise Adagrad.
"""

from typing import Any

import torch
from torch import Tensor
from torchrec.distributed.embedding_types import KJTList
from torchrec.distributed.mc_embeddingbag import (
    ManagedCollisionEmbeddingBagCollectionSharder,
    ShardedManagedCollisionEmbeddingBagCollection,
)
from torchrec.distributed.mc_modules import ManagedCollisionCollectionSharder
from torchrec.distributed.types import Awaitable, ParameterSharding, QuantizedCommCodecs, ShardingEnv, ShardingType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.modules.zero_collision import ZeroCollisionEmbeddingBagCollection, hashed_features, row_module
from torchrec_mtl.training.sharded_tables import TableSharder


class ShardedZeroCollisionEmbeddingBagCollection(ShardedManagedCollisionEmbeddingBagCollection):
    """A sharded `ZeroCollisionEmbeddingBagCollection`."""

    def __init__(self, module: ZeroCollisionEmbeddingBagCollection, *args: Any, **kwargs: Any) -> None:
        super().__init__(module, *args, **kwargs)
        self.seed, self.feature_names = module.seed, module.feature_names

    def input_dist(self, ctx: Any, features: KeyedJaggedTensor) -> Awaitable[Awaitable[KJTList]]:
        """Hashes the ids, and sends them to the ranks of their buckets."""
        return super().input_dist(ctx, hashed_features(features, self.feature_names))

    @torch.no_grad()
    def _evict(self, evictions_per_table: dict[str, Tensor | None]) -> None:
        """Starts rows that change hands anew, with their optimizer state, before they are looked up."""
        managed: Any = self._managed_collision_collection
        for table, rows in evictions_per_table.items():  # rows of this rank, from 0
            if rows is None:
                continue
            lookup, number = self._table_to_tbe_and_index[table]
            init_fn = managed._table_name_to_config[table].init_fn
            weight = lookup.split_embedding_weights()[int(number)]
            in_table = rows + managed._table_to_offset[table]
            weight[rows] = row_module(managed, table).initial_values(in_table, weight, init_fn, self.seed)
            for states in lookup.split_optimizer_states()[int(number) : int(number) + 1]:  # SGD has none
                for state in states:
                    state[rows] = 0


class ZeroCollisionSharder(ManagedCollisionEmbeddingBagCollectionSharder):
    """Row-wise, with an optimizer that is fused with the backward pass."""

    def __init__(self, codecs: dict[str, QuantizedCommCodecs] | None = None) -> None:
        super().__init__(TableSharder(codecs), ManagedCollisionCollectionSharder(), qcomm_codecs_registry=codecs)

    @property
    def module_type(self) -> type[ZeroCollisionEmbeddingBagCollection]:
        """The collection that is sharded."""
        return ZeroCollisionEmbeddingBagCollection

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Row-wise alone."""
        return [ShardingType.ROW_WISE.value]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """Fused alone."""
        return ["fused"]

    def shard(  # type: ignore[override]  # TorchRec gives it what is of `module_type`
        self,
        module: ZeroCollisionEmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedZeroCollisionEmbeddingBagCollection:
        """The part of the collection that this rank has."""
        return ShardedZeroCollisionEmbeddingBagCollection(
            module, params, ebc_sharder=self._e_sharder, mc_sharder=self._mc_sharder, env=env, device=device
        )
