"""What a sharding plan says, in a line and as a table."""

from collections import Counter, defaultdict
from dataclasses import dataclass

from torch import nn
from torchrec.distributed.types import ParameterSharding, ShardingPlan
from torchrec.modules.embedding_configs import BaseEmbeddingConfig

from torchrec_mtl.training.config import TrainingConfig
from torchrec_mtl.training.memory import shard_bytes, table_bytes
from torchrec_mtl.training.sharding import collections, planned, tables_of
from torchrec_mtl.training.table_constraints import REPLICATED


@dataclass(frozen=True)
class _Placed:
    """A table: its sharding type, its optimizer, and ``(rank, rows, columns)`` of each shard."""

    table: BaseEmbeddingConfig
    sharding: str
    optimizer: str
    shards: list[tuple[int, int, int]]

    @property
    def line(self) -> str:
        table, ranks = self.table, ",".join(map(str, sorted({rank for rank, *_ in self.shards})))
        size = f"{table.num_embeddings:>12,} x {table.embedding_dim:<4}"
        of_table = f"{table_bytes(table, self.optimizer) / 1e6:.1f} MB"
        return f"  {table.name:<24} {size} {self.sharding:<18} {self.optimizer:<16} {of_table:>12} rank {ranks}"


def _placed(plan: ShardingPlan, model: nn.Module, config: TrainingConfig, world_size: int) -> list[_Placed]:
    placed = []
    for path, collection in collections(model):
        for table, _ in tables_of(collection):
            of_tables = planned(plan, path)
            sharding = ParameterSharding(REPLICATED, "dense") if of_tables is None else of_tables[table.name]
            shards = _shards(sharding, table.num_embeddings, table.embedding_dim, world_size)
            optimizer = config.table_config(table.name).optimizer
            placed.append(_Placed(table, sharding.sharding_type, optimizer, shards))
    return placed


def _shards(sharding: ParameterSharding, rows: int, columns: int, world_size: int) -> list[tuple[int, int, int]]:
    if sharding.sharding_spec is None:
        return [(rank, rows, columns) for rank in range(world_size)]
    placed = sharding.sharding_spec.shards  # type: ignore[attr-defined]
    return [(shard.placement.rank(), *shard.shard_sizes) for shard in placed]


def _megabytes(tables: list[_Placed], world_size: int) -> list[float]:
    """Those of each rank, of parameters and optimizer states."""
    memory: dict[int, float] = defaultdict(float)
    for each in tables:
        for rank, rows, columns in each.shards:
            memory[rank] += shard_bytes(each.table, each.optimizer, rows, columns) / 1e6
    return [memory[rank] for rank in range(world_size)]


def summarize_plan(plan: ShardingPlan, model: nn.Module, config: TrainingConfig, world_size: int) -> str:
    """The plan in a line: how many tables are sharded in which way, and the least and most memory of a rank.

    Args:
        plan: plan made by `plan_sharding`.
        model: model that was planned.
        config: settings that were planned with.
        world_size: number of ranks.
    """
    tables = _placed(plan, model, config, world_size)
    kinds = Counter(each.sharding for each in tables)
    of_ranks = sorted({f"{megabytes:.1f}" for megabytes in _megabytes(tables, world_size)}, key=float)
    memory = " to ".join(dict.fromkeys((of_ranks[0], of_ranks[-1])))
    listed = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    return f"{len(tables)} tables over {world_size} ranks ({listed}), {memory} MB a rank with optimizer states"


def describe_plan(plan: ShardingPlan, model: nn.Module, config: TrainingConfig, world_size: int) -> str:
    """The plan as a table: sharding, ranks and bytes with optimizer state of each table, and the memory of each rank.

    The memory is that of parameters and optimizer states; activations and communication buffers need more.

    Args:
        plan: plan made by `plan_sharding`.
        model: model that was planned.
        config: settings that were planned with.
        world_size: number of ranks.
    """
    tables = _placed(plan, model, config, world_size)
    of_tables = {id(p) for _, collection in collections(model) for p in collection.parameters()}
    dense = sum(p.numel() for p in model.parameters() if id(p) not in of_tables)
    of_ranks = ", ".join(f"{megabytes:.1f}" for megabytes in _megabytes(tables, world_size))
    return "\n".join(
        [
            f"sharding over {world_size} rank{'s' * (world_size > 1)}",
            *(each.line for each in tables),
            f"  dense parameters {dense:,}, with gradients and AdamW's state {16 * dense / 1e6:.1f} MB on every rank",
            f"  tables with optimizer states, MB a rank: {of_ranks}",
        ]
    )
