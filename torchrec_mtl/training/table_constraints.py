"""How each table may be sharded, and the settings that it cannot have."""

from typing import cast

import torch
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import ParameterConstraints
from torchrec.distributed.types import ShardingType
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, DataType, PoolingType
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import ManagedCollisionModule

from torchrec_mtl.errors import InputError
from torchrec_mtl.modules.feature_arch import embedding_configs
from torchrec_mtl.modules.zero_collision import ZeroCollisionEmbeddingBagCollection
from torchrec_mtl.ops import library
from torchrec_mtl.training.config import TableConfig, TrainingConfig

REPLICATED = ShardingType.DATA_PARALLEL.value


def is_replicated(table: TableConfig) -> bool:
    """Whether every rank holds the whole table and updates it after the backward pass."""
    return table.sharding == REPLICATED or table.optimizer == "adam"


def _check_optimizer(table: BaseEmbeddingConfig, config: TableConfig, device: torch.device) -> None:
    """Checks that the device has the table's optimizer where the table is placed."""
    name = table.name
    if config.optimizer == "adam" and config.sharding not in ("auto", REPLICATED):
        rule = "must be 'auto' with adam, which updates every row; 'sparse_adam' and 'rowwise_adam' may have any"
        raise InputError(f"`sharding` (={config.sharding!r}) of {name} {rule}")
    if config.optimizer not in ("sparse_adam", "rowwise_adam"):
        return
    if config.sharding == REPLICATED:
        rule = "must be 'adam' if the table is replicated: its gradient is dense"
        raise InputError(f"`optimizer` (={config.optimizer!r}) of {name} {rule}")
    if device.type != "cpu":
        return
    if table.data_type != DataType.FP32:
        rule = f"must be another for a table in {table.data_type.value}: on a CPU it takes FP32"
        raise InputError(f"`optimizer` (={config.optimizer!r}) of {name} {rule}")
    if not library.load():
        rule = "needs the kernels on a CPU: build them with `python -m torchrec_mtl.ops.build`, or take another"
        raise InputError(f"`optimizer` (={config.optimizer!r}) of {name} {rule}")


def _impossible(table: BaseEmbeddingConfig, world_size: int, local_world_size: int) -> dict[str, str]:
    """The sharding types that the table cannot have, and why."""
    found = {}
    ranks = {"row_wise": world_size, "table_row_wise": local_world_size, "grid_shard": local_world_size}
    for kind, num_ranks in ranks.items():
        of_rank = -(-table.num_embeddings // num_ranks)  # the last ranks get what is left
        if of_rank * (num_ranks - 1) >= table.num_embeddings:
            found[kind] = f"its {table.num_embeddings} rows leave one of {num_ranks} ranks without any"
    if getattr(table, "pooling", None) == PoolingType.MEAN:  # TorchRec sums the averages of grid's shards
        found["grid_shard"] = "its lists are averaged"
    return found


def constraints_of(
    table: BaseEmbeddingConfig, config: TableConfig, device: torch.device, world_size: int, local_world_size: int
) -> ParameterConstraints:
    """What TorchRec's planner may choose from for a table.

    Args:
        table: config of the table.
        config: settings of the table.
        device: device of the model.
        world_size, local_world_size: number of ranks, and of those on a node.

    Raises:
        InputError: if the table cannot have its optimizer or its sharding.
    """
    _check_optimizer(table, config, device)
    if is_replicated(config):
        return ParameterConstraints(sharding_types=[REPLICATED], compute_kernels=["dense"])
    impossible = _impossible(table, world_size, local_world_size)
    if config.sharding in impossible:
        reason = impossible[config.sharding]
        raise InputError(f"`sharding` (={config.sharding!r}) of {table.name} must be another: {reason}")
    if config.sharding != "auto":
        # as many column shards as ranks; fbgemm needs multiples of four columns
        narrowest = max(4, -(-table.embedding_dim // (4 * world_size)) * 4)
        return ParameterConstraints(sharding_types=[config.sharding], min_partition=narrowest)
    # the planner likes to replicate small tables, but a replicated table cannot have a fused optimizer
    offered = EmbeddingBagCollectionSharder().sharding_types(device.type)
    return ParameterConstraints(sharding_types=[kind for kind in offered if kind not in (REPLICATED, *impossible)])


def check_zero_collision(
    collection: ManagedCollisionEmbeddingBagCollection, config: TrainingConfig, world_size: int
) -> None:
    """Raises `InputError` unless tables for ids without a vocabulary can be sharded by row, with a fused optimizer."""
    if not isinstance(collection, ZeroCollisionEmbeddingBagCollection):
        rule = "must be a `ZeroCollisionEmbeddingBagCollection`"
        raise InputError(f"a collection with managed collisions (={type(collection).__name__}) {rule}")
    for name, rows in collection._managed_collision_collection._managed_collision_modules.items():
        settings, buckets = config.table_config(name), cast(ManagedCollisionModule, rows).buckets()
        if settings.optimizer == "adam":
            raise InputError(
                f"`optimizer` (='adam') of {name} must be another, such as 'sparse_adam', as its ids have no "
                "vocabulary: a row that changes hands starts anew with its optimizer state"
            )
        if settings.sharding not in ("auto", "row_wise"):
            rule = "must be 'auto' or 'row_wise', as its ids have no vocabulary"
            raise InputError(f"`sharding` (={settings.sharding!r}) of {name} {rule}")
        if buckets % world_size:
            rule = f"must divide `buckets` (={buckets}) of {name}; only a new run can have other buckets"
            raise InputError(f"the number of processes (={world_size}) {rule}")


def check_processed(collection: FeatureProcessedEmbeddingBagCollection, config: TrainingConfig) -> None:
    """Raises `InputError` if processors would not learn: TorchRec sends no gradient back from the ranks of a table."""
    tables = [table.name for table in embedding_configs(collection)]
    sharded = [name for name in tables if not is_replicated(config.table_config(name))]
    if sharded and any(p.requires_grad for p in collection._feature_processors.parameters()):
        sharding = config.table_config(sharded[0]).sharding
        rule = f"must be {REPLICATED!r}: processors of its features get no gradient from a sharded table"
        raise InputError(f"`sharding` (={sharding!r}) of {sharded[0]} {rule}")


def check_rows(collection: EmbeddingCollection, config: TrainingConfig) -> None:
    """Raises `InputError` unless tables whose rows are not pooled are all replicated, or all sharded by TorchRec."""
    settings = {table.name: config.table_config(table.name) for table in collection.embedding_configs()}
    kinds = ["auto", *EmbeddingCollectionSharder().sharding_types("cpu")]
    first = next(iter(settings.values()))
    for name, of_table in settings.items():
        if of_table.sharding not in kinds:
            rule = f"must be one of {kinds}, as its features are histories or their candidates"
            raise InputError(f"`sharding` (={of_table.sharding!r}) of {name} {rule}")
        if is_replicated(of_table) != is_replicated(first):
            raise InputError(f"the tables {list(settings)} of histories must all be replicated, or none of them")
