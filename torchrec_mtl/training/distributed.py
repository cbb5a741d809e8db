"""From a model to sharded tables, replicated dense parameters, and one optimizer for both."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.types import ShardingPlan
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import PartialRowWiseAdam, in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from torchrec_mtl.training.averaging import Averaging
from torchrec_mtl.training.config import TrainingConfig
from torchrec_mtl.training.hang import going_on
from torchrec_mtl.training.process_group import share_timeout
from torchrec_mtl.training.sharding import collections, plan_sharding, planned, set_precisions, sharders, tables_of
from torchrec_mtl.training.table_constraints import is_replicated

_BLOCK_ELEMENTS = 2**20  # of a table, drawn together

_OPTIMIZERS: dict[str, tuple[Any, dict[str, float]]] = {
    "rowwise_adagrad": (RowWiseAdagrad, {"eps": 1e-8}),
    "adagrad": (torch.optim.Adagrad, {"eps": 1e-8}),
    "sgd": (torch.optim.SGD, {}),
    "sparse_adam": (torch.optim.Adam, {}),  # which is fused as the sparse one
    "rowwise_adam": (PartialRowWiseAdam, {}),
}


def distribute(
    train_model: nn.Module, config: TrainingConfig, device: torch.device
) -> tuple[DistributedModelParallel, CombinedOptimizer]:
    """Shards the tables, replicates the other parameters, and makes the optimizer of both.

    Args:
        train_model: `MultiTaskTrain`, whose tables may be on ``meta``. Tables are initialised by the ``init_fn`` of
            their configs, with the same values on any number of ranks.
        config: settings of the run; its tables, optimizer and seed are used.
        device: device of this rank. The process group must be set up.

    Returns:
        The distributed model and its optimizer for TorchRec's pipelines. The optimizer combines the fused table
        optimizers, if any; one AdamW for the dense parameters and replicated tables with Adam; and one optimizer for
        each other setting of replicated tables.

    Raises:
        InputError: see `plan_sharding`.
    """
    plan = plan_sharding(train_model, config, device)
    return distribute_as_planned(train_model, plan, config, device)


def distribute_as_planned(
    train_model: nn.Module, plan: ShardingPlan, config: TrainingConfig, device: torch.device
) -> tuple[DistributedModelParallel, CombinedOptimizer]:
    """`distribute` with a plan made by `plan_sharding`."""
    set_precisions(train_model, config)
    tables: dict[str, tuple[str, Any]] = {}  # name and init_fn of each table, by the name of its parameter
    for path, collection in collections(train_model):
        for table, parameter in tables_of(collection):
            tables[f"{path}.{parameter}"] = (table.name, table.init_fn)
            settings = config.table_config(table.name)
            if not is_replicated(settings):
                optimizer, options = _OPTIMIZERS[settings.optimizer]
                weight = collection.get_parameter(parameter)
                apply_optimizer_in_backward(optimizer, [weight], {"lr": settings.learning_rate, **options})
        if planned(plan, path) is None:
            collection.to_empty(device=device)  # which sharding does for the other tables
    several = dist.get_world_size() > 1  # one replica has nothing to average
    of_kinds = sharders(config, device, dist.get_world_size())
    model = DistributedModelParallel(
        train_model, device=device, plan=plan, sharders=of_kinds, init_data_parallel=several
    )
    share_timeout()
    model.module.to(device)
    model.averaging = Averaging(model)  # type: ignore[assignment]  # for `Step`
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
        return torch.optim.AdamW(groups, weight_decay=0.0, fused=True)  # ten times as fast for a table on a CPU

    named = {name: p for parameters in (stepped, *with_adam.values()) for name, p in parameters.items()}
    after_backward: list[KeyedOptimizer] = [KeyedOptimizerWrapper(named, adam)]
    for (kind, rate), parameters in replicated.items():
        optimizer, options = _OPTIMIZERS[kind]
        after_backward.append(KeyedOptimizerWrapper(parameters, partial(optimizer, lr=rate, **options)))
    return model, CombinedOptimizer([model.fused_optimizer, *after_backward])


def _blocks(
    init_fn: Callable[[Tensor], object], key: str, shape: torch.Size, first: int, last: int
) -> Iterator[tuple[int, Tensor]]:
    """Yields blocks ``(first row, [rows, D])`` that cover rows ``first`` to ``last``, each with a seed of its own."""
    num_rows, width = shape
    size = max(1, _BLOCK_ELEMENTS // width)
    for start in range(first // size * size, last, size):
        block = torch.empty(min(size, num_rows - start), width)
        digest = hashlib.sha256(f"{key}/{start}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
        init_fn(block)
        yield start, block


@torch.no_grad()
def start_tables(model: nn.Module, init_fns: dict[str, Callable[[Tensor], object]], seed: int) -> None:
    """Initialises every table with values that do not depend on the number of ranks or the sharding.

    A table is drawn in blocks of rows, each from a generator seeded by ``seed``, the table and the block. A rank draws
    the blocks that its shards touch.

    Args:
        model: model with the tables, sharded or not.
        init_fns: functions that fill a block ``[rows, D]`` on the CPU, by the table's name in ``model.state_dict()``.
        seed: seed of all tables.
    """
    state = model.state_dict()
    with torch.random.fork_rng(devices=[]):
        for name, init_fn in init_fns.items():
            table = state[name]
            if isinstance(table, ShardedTensor):
                shape = table.metadata().size  # its own `shape` warns
                shards = [(shard.metadata.shard_offsets, shard.tensor) for shard in table.local_shards()]
            else:
                shape, shards = table.shape, [([0, 0], table)]
            for (row, column), values in shards:
                last = row + values.shape[0]
                for start, block in _blocks(init_fn, f"{seed}/{name}", shape, row, last):
                    going_on()
                    lower, upper = max(row, start), min(last, start + len(block))
                    drawn = block[lower - start : upper - start, column : column + values.shape[1]]
                    values[lower - row : upper - row].copy_(drawn)
