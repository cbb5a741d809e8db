"""Where each table is placed: TorchRec's planner, within the settings of the run."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingCollection
from torchrec.distributed.comm import get_local_size
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    HardwareConfig,
    KernelConfig,
    PlannerError,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import ShardingPlan, ShardingType
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, DataType
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection

from torchrec_mtl.errors import InputError
from torchrec_mtl.modules.feature_arch import embedding_configs
from torchrec_mtl.training.config import TrainingConfig
from torchrec_mtl.training.exchange import exchange_codecs
from torchrec_mtl.training.memory import check_memory, device_memory, host_memory
from torchrec_mtl.training.process_group import on_first_rank
from torchrec_mtl.training.sharded_tables import RowSharder, TableSharder
from torchrec_mtl.training.table_constraints import (
    check_processed,
    check_rows,
    check_zero_collision,
    constraints_of,
    is_replicated,
)
from torchrec_mtl.training.zero_collision_sharding import ZeroCollisionSharder


def sharders(config: TrainingConfig, device: torch.device, world_size: int) -> list[Any]:
    """The sharders of everything that `plan_sharding` plans.

    Raises:
        InputError: if ``exchange_precision`` is not one that the device's ranks can send.
    """
    codecs = exchange_codecs(config.exchange_precision, config.batch_size, device)
    used = codecs if world_size > 1 else None
    return [TableSharder(used), RowSharder(used), ZeroCollisionSharder(used)]


def collections(model: nn.Module) -> Iterator[tuple[str, EmbeddingBagCollection | EmbeddingCollection]]:
    """The collections of tables in the model, each with its path."""
    kinds = (EmbeddingBagCollection, EmbeddingCollection)
    return ((path, m) for path, m in model.named_modules() if isinstance(m, kinds))


def tables_of(collection: EmbeddingBagCollection | EmbeddingCollection) -> list[tuple[BaseEmbeddingConfig, str]]:
    """The tables of a collection, each with the name of its parameter."""
    if isinstance(collection, EmbeddingCollection):
        return [(table, f"embeddings.{table.name}.weight") for table in collection.embedding_configs()]
    return [(table, f"embedding_bags.{table.name}.weight") for table in collection.embedding_bag_configs()]


def planned(plan: ShardingPlan, path: str) -> Any:
    """The plan of the tables of `collections` at ``path``; None if they are replicated."""
    return plan.get_plan_for_module(path.removesuffix("._embedding_module"))


def set_precisions(model: nn.Module, config: TrainingConfig) -> None:
    """Makes the tables fp16 whose settings say so; others keep the type that their configs have."""
    for _, collection in collections(model):
        kept = "_embedding_configs" if isinstance(collection, EmbeddingCollection) else "_embedding_bag_configs"
        tables = [(each, parameter.removesuffix(".weight")) for each, parameter in tables_of(collection)]
        half = {path for each, path in tables if config.table_config(each.name).precision == "fp16"}
        configs = [replace(each, data_type=DataType.FP16) if path in half else each for each, path in tables]
        setattr(collection, kept, configs)  # the list and the configs that it was made of may be another model's too
        for path in half:
            collection.get_submodule(path).half()


def check_table_names(model: nn.Module, config: TrainingConfig) -> dict[str, BaseEmbeddingConfig]:
    """The tables of the model by name; raises `InputError` if ``config.tables`` names another."""
    configs: dict[str, BaseEmbeddingConfig] = {
        table.name: table for _, collection in collections(model) for table, _ in tables_of(collection)
    }
    for name in config.tables:
        if name not in configs:
            raise InputError(f"`tables` (={name!r}) must be of the model's: {sorted(configs)}")
    return configs


def plan_sharding(
    model: nn.Module,
    config: TrainingConfig,
    device: torch.device,
    world_size: int | None = None,
    local_world_size: int | None = None,
) -> ShardingPlan:
    """Plans where to place all tables, each as the run says or as the planner finds best, in the type that it says.

    Args:
        model: model with `EmbeddingBagCollection` modules, on any device, ``meta`` included.
        config: settings of the run; its ``table`` and ``tables`` are used.
        device: device that the model will run on.
        world_size: number of ranks to plan for. By default, all ranks of the process group; they must all call this
            function, and get the plan of the first rank.
        local_world_size: number of ranks on a node.

    Raises:
        InputError: if ``tables`` names a table that the model does not have, the tables need more memory than the ranks
            of the process group have, fbgemm does not support a table's dimension, a table cannot have its optimizer or
            sharding, or the planner finds no plan.

    Returns:
        The plan, which is empty if every table is replicated.
    """
    set_precisions(model, config)
    configs = check_table_names(model, config)
    together = world_size is None
    world_size = dist.get_world_size() if world_size is None else world_size
    local_world_size = local_world_size or get_local_size(world_size)
    managed = [m for m in model.modules() if isinstance(m, ManagedCollisionEmbeddingBagCollection)]
    for of_ids in managed:
        check_zero_collision(of_ids, config, world_size)
    for module in model.modules():
        if isinstance(module, FeatureProcessedEmbeddingBagCollection):
            check_processed(module, config)
        if isinstance(module, EmbeddingCollection):
            check_rows(module, config)
    gpu, host = device_memory(device), host_memory() // local_world_size if together else None
    constraints = {
        name: constraints_of(table, config.table_config(name), device, world_size, local_world_size)
        for name, table in configs.items()
    }
    for of_ids in managed:
        by_row = ParameterConstraints(sharding_types=[ShardingType.ROW_WISE.value])
        constraints |= {table.name: by_row for table in embedding_configs(of_ids)}
    if host is not None:
        settings = {name: config.table_config(name) for name in configs}
        sizes = [(configs[name], of.optimizer, is_replicated(of)) for name, of in settings.items()]
        check_memory(sizes, gpu or host, world_size)
    if all(is_replicated(config.table_config(name)) for name in configs):
        return ShardingPlan({})  # TorchRec does not touch tables without a plan
    for name, table in configs.items():
        if table.embedding_dim % 4:
            rule = f"`embedding_dim` (={table.embedding_dim}) of {name} must be a multiple of 4 in fbgemm's operators"
            raise InputError(f"{rule}; tables that are all replicated may have any")
    topology = TopologyFactory.create_topology(
        TrainerConfig(world_size=world_size, local_world_size=local_world_size),
        HardwareConfig(hbm_cap_bytes=gpu, ddr_cap_bytes=host),
        KernelConfig(compute_device=device.type),
    )
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=max(1, config.batch_size // (world_size * config.micro_batches)),
        constraints=constraints,
        storage_reservation=FixedPercentageStorageReservation(0.15),
    )

    of_kinds = sharders(config, device, world_size)

    def make() -> ShardingPlan:
        try:
            plan = planner.plan(model, of_kinds)
            for path, collection in collections(model):
                replicated = any(is_replicated(config.table_config(table.name)) for table, _ in tables_of(collection))
                if replicated and isinstance(collection, EmbeddingCollection):
                    del plan.plan[path]  # TorchRec's replicas give no rows on a CPU
            return plan
        except PlannerError as error:
            reason = " ".join(str(error).split())
            message = f"`sharding` of the tables must have a plan over {world_size} ranks: {reason}"
        raise InputError(message)

    return on_first_rank(make) if together else make()
