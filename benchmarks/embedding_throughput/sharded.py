"""TorchRec's collections as candidates: unsharded, under bare `DistributedModelParallel`, and as our jobs make them."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor, KeyedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, data_parallel
from torchrec.distributed.types import CacheParams, ShardingPlan
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from benchmarks.embedding_throughput.candidates import CACHED_SHARE, EPS, LEARNING_RATE, Initializer, Shard
from benchmarks.embedding_throughput.workload import Batch, Workload
from torchrec_mtl.training.config import TableConfig, TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.sharding import REPLICATED, plan_sharding
from torchrec_mtl.training.table_start import start_tables

SEED = 0
KINDS = {"row-wise Adagrad": "rowwise_adagrad", "SGD": "sgd"}  # our names


def optimizer_of(name: str) -> tuple[Any, dict[str, float]]:
    """Its class and options; a new dictionary, since sharding writes into it."""
    if name == "SGD":
        return torch.optim.SGD, {"lr": LEARNING_RATE}
    return RowWiseAdagrad, {"lr": LEARNING_RATE, "eps": EPS}


class Lookup(nn.Module):
    """A model of nothing but tables."""

    def __init__(self, embedding_bag_collection: EmbeddingBagCollection) -> None:
        super().__init__()
        self.embedding_bag_collection = embedding_bag_collection

    def forward(self, sparse_features: KeyedJaggedTensor) -> KeyedTensor:
        return self.embedding_bag_collection(sparse_features)


def step_in_backward(model: nn.Module, optimizer: str) -> None:
    """Gives each table an optimizer that steps it as soon as it has its gradient."""
    kind, options = optimizer_of(optimizer)
    apply_optimizer_in_backward(kind, model.parameters(), options)


def start(model: nn.Module, workload: Workload, init_fn: Initializer) -> None:
    """As `distribute` starts tables: the same values however they are sharded."""
    names = (f"embedding_bag_collection.embedding_bags.t{t}.weight" for t in range(len(workload.table_rows)))
    start_tables(model, dict.fromkeys(names, init_fn), SEED)


class Collection:
    """A model of tables, and what steps those that the backward pass has not stepped.

    Args:
        model: `Lookup`, sharded or not.
        optimizer: None where all tables are stepped in the backward pass.
    """

    def __init__(self, model: nn.Module, optimizer: CombinedOptimizer | None) -> None:
        self.model, self.optimizer = model, optimizer
        self.gradient: Tensor | None = None  # a batch's
        self.ordered = torch.empty(0)  # the same, with features in the order that the model gives them in

    def forward(self, batch: Batch) -> Tensor:
        return self.model(batch.sparse_features).values()

    def pooled(self, batch: Batch) -> Tensor:
        pooled = self.model(batch.sparse_features).to_dict()
        return torch.stack([pooled[f"f{t}"] for t in range(len(batch.ids))], 1).float()

    def _gradient(self, batch: Batch, pooled: KeyedTensor) -> Tensor:
        if self.gradient is not batch.gradient:
            order = [int(name[1:]) for name in pooled.keys()]  # noqa: SIM118  (no dict)
            self.gradient, self.ordered = batch.gradient, batch.gradient[:, order].flatten(1)
        return self.ordered

    def train(self, batch: Batch) -> None:
        pooled = self.model(batch.sparse_features)
        pooled.values().backward(self._gradient(batch, pooled))
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def shards(self) -> Iterator[Shard]:
        for name, table in self.model.state_dict().items():
            t = int(name.split(".")[-2][1:])
            if isinstance(table, ShardedTensor):
                for shard in table.local_shards():
                    row, column = shard.metadata.shard_offsets
                    yield t, row, column, shard.tensor
            else:
                yield t, 0, 0, table


def unsharded(workload: Workload, optimizer: str, device: torch.device, init_fn: Initializer) -> Collection:
    """`EmbeddingBagCollection` as it is; its gradients are dense."""
    model = Lookup(workload.collection(init_fn, device))
    step_in_backward(model, optimizer)
    start(model, workload, init_fn)
    return Collection(model, None)


def _config(workload: Workload, optimizer: str, sharding: str) -> TrainingConfig:
    table = TableConfig(optimizer=KINDS[optimizer], learning_rate=LEARNING_RATE, sharding=sharding)
    return TrainingConfig(batch_size=workload.batch_size, table=table, seed=SEED)


def _plan(model: Lookup, config: TrainingConfig, device: torch.device, cached: bool) -> ShardingPlan:
    """Ours; where we leave tables to the replication of dense parameters, TorchRec's own for replicated tables."""
    if config.table.sharding != REPLICATED:
        plan = plan_sharding(model, config, device)
        if cached:
            for sharding in plan.plan["embedding_bag_collection"].values():
                sharding.compute_kernel = EmbeddingComputeKernel.FUSED_UVM_CACHING.value
                sharding.cache_params = CacheParams(load_factor=CACHED_SHARE)
        return plan
    collection, world_size = model.embedding_bag_collection, dist.get_world_size()
    names = [table.name for table in collection.embedding_bag_configs()]
    replicated = construct_module_sharding_plan(
        collection,
        dict.fromkeys(names, data_parallel()),
        EmbeddingBagCollectionSharder(),
        local_size=world_size,
        world_size=world_size,
        device_type=device.type,
    )
    return ShardingPlan({"embedding_bag_collection": replicated})


def bare(
    workload: Workload, optimizer: str, device: torch.device, init_fn: Initializer, sharding: str, cached: bool = False
) -> Collection:
    """`DistributedModelParallel` as TorchRec's own examples use it."""
    model = Lookup(workload.collection(init_fn, torch.device("meta")))
    if sharding != REPLICATED:
        step_in_backward(model, optimizer)
    plan = _plan(model, _config(workload, optimizer, sharding), device, cached)
    sharders: Any = [EmbeddingBagCollectionSharder()]
    parallel = DistributedModelParallel(model, device=device, plan=plan, sharders=sharders)
    start(parallel, workload, init_fn)
    stepped = dict(in_backward_optimizer_filter(parallel.named_parameters()))
    kind, options = optimizer_of(optimizer)
    after = [KeyedOptimizerWrapper(stepped, partial(kind, **options))] if stepped else []
    return Collection(parallel, CombinedOptimizer([parallel.fused_optimizer, *after]))


def ours(workload: Workload, optimizer: str, device: torch.device, init_fn: Initializer, sharding: str) -> Collection:
    """`torchrec_mtl.training.distributed.distribute`."""
    model = Lookup(workload.collection(init_fn, torch.device("meta")))
    return Collection(*distribute(model, _config(workload, optimizer, sharding), device))
