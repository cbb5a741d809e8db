"""From a model to sharded tables, replicated dense parameters and the optimizer of both."""

import logging
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.types import ShardingPlan
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from torchrec_mtl.training.config import TrainingConfig
from torchrec_mtl.training.sharding import TableSharder, collections, is_replicated, plan_sharding
from torchrec_mtl.training.table_start import start_tables

logger = logging.getLogger(__name__)

_OPTIMIZERS: dict[str, tuple[Any, dict[str, float]]] = {
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
def process_group(device: torch.device, timeout: timedelta = timedelta(minutes=10)) -> Iterator[None]:
    """The default process group: torchrun's where it launched this process, else a group of one.

    Args:
        device: NCCL on CUDA, gloo on the CPU.
        timeout: how long a rank waits for the others in one operation.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if dist.is_torchelastic_launched():
        store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
        if os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True":
            # torchrun keeps its store over restarts, where the ranks of a dead attempt left their addresses. Stores of
            # their own have no such prefix: agents count restarts each for itself, not all of them alike.
            store = dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()


def distribute(
    train_model: nn.Module, config: TrainingConfig, device: torch.device
) -> tuple[DistributedModelParallel, CombinedOptimizer]:
    """Shards the tables, replicates the rest, and makes the optimizer that steps both.

    Args:
        train_model: a `MultiTaskTrain`; tables may be on ``meta``. They are (re-)initialised by their configs'
            ``init_fn``, the same on any number of ranks.
        config: tables, optimizer and seed are read.
        device: where it runs. The process group must stand.

    Returns:
        The distributed model, and its optimizer for TorchRec's pipelines: fused table optimizers, if any, one AdamW of
        the dense parameters and replicated Adam tables, and one for each other setting of replicated tables.

    Raises:
        InputError: see `plan_sharding`.
    """
    plan = plan_sharding(train_model, config, device)
    return distribute_as_planned(train_model, plan, config, device)


def distribute_as_planned(
    train_model: nn.Module, plan: ShardingPlan, config: TrainingConfig, device: torch.device
) -> tuple[DistributedModelParallel, CombinedOptimizer]:
    """`distribute` with a plan of `plan_sharding`'s."""
    tables: dict[str, tuple[str, Any]] = {}  # by parameter name: the table's name and init_fn
    for path, collection in collections(train_model):
        for table in collection.embedding_bag_configs():
            tables[f"{path}.embedding_bags.{table.name}.weight"] = (table.name, table.init_fn)
            settings = config.table_config(table.name)
            if not is_replicated(settings, device):
                optimizer, options = _OPTIMIZERS[settings.optimizer]
                weights = collection.embedding_bags[table.name].parameters()
                apply_optimizer_in_backward(optimizer, weights, {"lr": settings.learning_rate, **options})
        if plan.get_plan_for_module(path) is None:
            collection.to_empty(device=device)  # sharding would see to it
    sharders: Any = [TableSharder()]
    model = DistributedModelParallel(train_model, device=device, plan=plan, sharders=sharders)
    start_tables(model, {name: init_fn for name, (_, init_fn) in tables.items()}, config.seed)

    stepped = dict(in_backward_optimizer_filter(model.named_parameters()))
    replicated: dict[tuple[str, float], dict[str, Any]] = defaultdict(dict)
    for name in stepped.keys() & tables.keys():
        settings = config.table_config(tables[name][0])
        replicated[settings.optimizer, settings.learning_rate][name] = stepped.pop(name)
    with_adam = {key: replicated.pop(key) for key in list(replicated) if key[0] == "adam"}

    def adam(params: Any) -> torch.optim.Optimizer:
        dense = {"params": list(stepped.values()), "lr": config.optimizer.learning_rate}
        groups = [{**dense, "weight_decay": config.optimizer.weight_decay}]
        groups += [{"params": list(of_rate.values()), "lr": rate} for (_, rate), of_rate in with_adam.items()]
        return torch.optim.AdamW(groups, weight_decay=0.0, fused=True)  # on a CPU ten times as fast on a table

    named = {name: p for parameters in (stepped, *with_adam.values()) for name, p in parameters.items()}
    after_backward: list[KeyedOptimizer] = [KeyedOptimizerWrapper(named, adam)]
    for (kind, rate), parameters in replicated.items():
        optimizer, options = _OPTIMIZERS[kind]
        after_backward.append(KeyedOptimizerWrapper(parameters, partial(optimizer, lr=rate, **options)))
    return model, CombinedOptimizer([model.fused_optimizer, *after_backward])
