"""Embedding tables for ids without a vocabulary."""

from collections.abc import Sequence
from typing import Any

import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import ManagedCollisionCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError
from torchrec_mtl.modules.eviction import Eviction
from torchrec_mtl.modules.id_hash import hash_ids
from torchrec_mtl.modules.zero_collision_rows import ZeroCollisionRows


class ZeroCollisionEmbeddingBagCollection(ManagedCollisionEmbeddingBagCollection):
    """TorchRec's collection with managed collisions, whose tables give each id of their features a row.

    An id is any integer of at least 0 and below 2^63 - 1. Ids get rows while the collection is in training mode. A row
    that is given to another id starts anew, from the ``init_fn`` of its table; if the collection is sharded by
    `torchrec_mtl.training.distributed.distribute`, its optimizer's state starts anew too. What happens does not depend
    on the number of ranks.

    Args:
        tables: the tables; ``num_embeddings`` is the number of ids that have rows at a time, and of the shared rows.
        eviction, interval, buckets, decay: see `torchrec_mtl.modules.row_assignment.RowAssignment`, for every table.
        seed: seed of the values of rows that start anew.
        device: device of the tables, which may be ``meta``.
        is_weighted: whether ids have weights.

    Raises:
        InputError: if a value is out of its range, or a feature is of two tables.

    Example::

        >>> users = EmbeddingBagConfig(name="t_user", embedding_dim=8, num_embeddings=96, feature_names=["user"])
        >>> collection = ZeroCollisionEmbeddingBagCollection([users], interval=1)
        >>> ids = KeyedJaggedTensor.from_lengths_sync(["user"], torch.tensor([7, 2**62]), torch.tensor([1, 1]))
        >>> pooled, _ = collection(ids)
        >>> pooled["user"].shape, {table: free.item() for table, free in collection.open_slots().items()}
        (torch.Size([2, 8]), {'t_user': 62})
    """

    @checked
    def __init__(
        self,
        tables: Sequence[EmbeddingBagConfig],
        *,
        eviction: Eviction = "lfu",
        interval: int = 10,
        buckets: int = 32,
        decay: float = 1.0,
        seed: int = 0,
        device: torch.device | None = None,
        is_weighted: bool = False,
    ) -> None:
        if not tables:
            raise InputError("`tables` must have at least one table")
        features = [name for table in tables for name in table.feature_names]
        for name in features:
            if features.count(name) > 1:
                raise InputError(f"feature {name!r} must be of one table without a vocabulary, not of two")
        rows: dict[str, Any] = {
            table.name: ZeroCollisionRows(
                table.name,
                table.num_embeddings,
                eviction=eviction,
                interval=interval,
                buckets=buckets,
                decay=decay,
                device=device,
            )
            for table in tables
        }
        super().__init__(
            EmbeddingBagCollection(tables=list(tables), device=device, is_weighted=is_weighted),
            ManagedCollisionCollection(rows, list(tables), need_preprocess=False),
        )
        self.seed = seed
        self.feature_names = features

    def open_slots(self) -> dict[str, torch.Tensor]:
        """Number of free rows of each table, ``[1]``."""
        return self._managed_collision_collection.open_slots()

    def forward(
        self, features: KeyedJaggedTensor, mutate_miss_lengths: bool = True
    ) -> tuple[KeyedTensor, KeyedJaggedTensor | None]:
        """Pooled embeddings of the features, and None, as TorchRec's collection returns them."""
        managed: Any = self._managed_collision_collection
        remapped = managed(hashed_features(features, self.feature_names))
        for table, rows in managed.evict().items():
            if rows is not None:
                with torch.no_grad():
                    weight = self._embedding_module.get_parameter(f"embedding_bags.{table}.weight")
                    init_fn = managed._table_name_to_config[table].init_fn
                    weight[rows] = row_module(managed, table).initial_values(rows, weight, init_fn, self.seed)
        return self._embedding_module(remapped), None


def row_module(managed: Any, table: str) -> ZeroCollisionRows:
    """The `ZeroCollisionRows` of a table of TorchRec's collection, sharded or not."""
    rows: ZeroCollisionRows = managed._managed_collision_modules[table]
    return rows


@torch.fx.wrap
def hashed_features(features: KeyedJaggedTensor, keys: list[str]) -> KeyedJaggedTensor:
    """The features ``keys`` with hashed ids, and with their weights."""
    if features.keys() != keys:
        features = features.permute([features.keys().index(key) for key in keys])
    return KeyedJaggedTensor(
        list(keys),
        hash_ids(features.values()),
        weights=features.weights_or_none(),
        lengths=features.lengths(),
        offsets=features.offsets(),
        stride=None if features.variable_stride_per_key() else features.stride(),
        stride_per_key_per_rank=features.stride_per_key_per_rank() if features.variable_stride_per_key() else None,
        inverse_indices=features.inverse_indices_or_none(),
    )
