"""From a model to sharded tables, replicated dense parameters and the optimizer of both."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec import EmbeddingBagCollection
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.comm import get_local_size
from torchrec.distributed.model_parallel import get_default_sharders
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import HardwareConfig, KernelConfig, TopologyFactory, TrainerConfig
from torchrec.distributed.types import ShardingPlan, ShardingType
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from torchrec_mtl.training.config import OptimizerConfig

logger = logging.getLogger(__name__)

_FUSED: dict[str, tuple[type[torch.optim.Optimizer], dict[str, float]]] = {
    "rowwise_adagrad": (RowWiseAdagrad, {"eps": 1e-8}),
    "adagrad": (torch.optim.Adagrad, {"eps": 1e-8}),
    "sgd": (torch.optim.SGD, {}),
    "adam": (torch.optim.Adam, {}),
}


def default_device() -> torch.device:
    """This rank's GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """The default process group: torchrun's where it launched this process, else a group of one."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if dist.is_torchelastic_launched():
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _tables(model: nn.Module) -> list[EmbeddingBagCollection]:
    return [module for module in model.modules() if isinstance(module, EmbeddingBagCollection)]


@torch.no_grad()
def _materialize(collection: EmbeddingBagCollection, device: torch.device) -> None:
    """Allocates and initialises the tables, where they are on ``meta``, by their configs' ``init_fn``."""
    if any(p.is_meta for p in collection.parameters()):
        collection.to_empty(device=device)
        for config in collection.embedding_bag_configs():
            table = collection.embedding_bags[config.name].weight
            assert config.init_fn is not None  # its config sees to it
            assert isinstance(table, torch.Tensor)
            config.init_fn(table)


def plan_sharding(model: nn.Module, device: torch.device) -> ShardingPlan:
    """TorchRec's own plan, over the sharding types that keep the tables' optimizer.

    The planner would replicate small tables, and replicated tables drop an optimizer that runs in the backward pass.

    Args:
        model: holds `EmbeddingBagCollection`\\ s, on any device, ``meta`` included.
        device: where the model will run.
    """
    allowed = [t.value for t in ShardingType if t is not ShardingType.DATA_PARALLEL]
    constraints = {
        table.name: ParameterConstraints(sharding_types=allowed)
        for collection in _tables(model)
        for table in collection.embedding_bag_configs()
    }
    world_size = dist.get_world_size()
    topology = TopologyFactory.create_topology(
        TrainerConfig(world_size=world_size, local_world_size=get_local_size(world_size)),
        HardwareConfig(),
        KernelConfig(compute_device=device.type),
    )
    planner = EmbeddingShardingPlanner(
        topology=topology,
        constraints=constraints,
        storage_reservation=FixedPercentageStorageReservation(0.15),
    )
    return planner.collective_plan(model, get_default_sharders(), dist.group.WORLD)


def distribute(
    train_model: nn.Module, config: OptimizerConfig, device: torch.device
) -> tuple[DistributedModelParallel, CombinedOptimizer]:
    """Shards the tables, replicates the rest, and makes the optimizer that steps both.

    Args:
        train_model: a `MultiTaskTrain`; tables may be on ``meta``. They are (re-)initialised.
        config: the optimizers.
        device: where it runs. The process group must stand.

    Returns:
        The distributed model, and its optimizer for TorchRec's pipelines: fused table optimizers, if any, and one
        Adam with a parameter group for replicated tables and one for dense parameters.
    """
    replicate = config.table_optimizer == "adam" and device.type == "cpu"
    names = {id(p) for collection in _tables(train_model) for p in collection.parameters()}
    dense_names = {name for name, p in train_model.named_parameters() if id(p) not in names}
    if replicate:
        logger.info("fbgemm has no fused Adam on the CPU: tables are replicated and stepped as dense parameters")
        for collection in _tables(train_model):
            _materialize(collection, device)
        plan = ShardingPlan({})  # tables without a plan are dense parameters
    else:
        optimizer_class, options = _FUSED[config.table_optimizer]
        options = {"lr": config.table_learning_rate, **options}
        for collection in _tables(train_model):
            apply_optimizer_in_backward(optimizer_class, collection.parameters(), options)
        plan = plan_sharding(train_model, device)
    model = DistributedModelParallel(train_model, device=device, plan=plan, sharders=get_default_sharders())
    stepped = dict(in_backward_optimizer_filter(model.named_parameters()))
    dense = {name: p for name, p in stepped.items() if name in dense_names}
    tables = {name: p for name, p in stepped.items() if name not in dense_names}

    def adam(params: Any) -> torch.optim.Optimizer:
        groups = [{"params": list(dense.values()), "lr": config.learning_rate, "weight_decay": config.weight_decay}]
        if tables:
            groups.append({"params": list(tables.values()), "lr": config.table_learning_rate})
        return torch.optim.AdamW(groups, weight_decay=0.0)

    return model, CombinedOptimizer([model.fused_optimizer, KeyedOptimizerWrapper({**dense, **tables}, adam)])
