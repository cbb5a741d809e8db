"""TorchRec's collections, unsharded and sharded, and all candidates by name."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.types import CacheParams, EmbeddingModuleShardingPlan, ParameterSharding, ShardingPlan
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from benchmarks.embedding_throughput import operators
from benchmarks.embedding_throughput.operators import OPTIMIZERS, Candidate, Shard
from benchmarks.embedding_throughput.workload import ADAGRAD, OFTEN, Batch, Workload
from torchrec_mtl.ops import library
from torchrec_mtl.training.config import SHARDINGS, TableConfig, TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.sharding import plan_sharding
from torchrec_mtl.training.table_constraints import REPLICATED

NAMES: dict[str, Any] = {  # in the settings of a run
    ADAGRAD: "rowwise_adagrad",
    "Adagrad": "adagrad",
    "Adam": "sparse_adam",
    "row-wise Adam": "rowwise_adam",
    **dict.fromkeys(("SGD", ""), "sgd"),
}


class Collection(Candidate):
    """A model that returns a collection's pooled embeddings; ``optimizer`` if the backward pass does not update all."""

    def __init__(self, model: nn.Module, optimizer: CombinedOptimizer | None = None) -> None:
        self.model, self.optimizer = model, optimizer

    def forward(self, batch: Batch) -> Tensor:
        pooled = self.model(batch.sparse_features)
        if isinstance(self.order, slice):
            self.order = [int(name[1:]) for name in pooled.keys()]  # noqa: SIM118  (not a dictionary)
        return pooled.values()

    def shards(self) -> Iterator[Shard]:
        for name, table in self.model.state_dict().items():
            t = int(name.split(".")[-2][1:])
            if not isinstance(table, ShardedTensor):
                yield t, ..., table
            for shard in table.local_shards() if isinstance(table, ShardedTensor) else ():
                (row, column), (rows, columns) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
                yield t, (slice(row, row + rows), slice(column, column + columns)), shard.tensor


def unsharded(workload: Workload, optimizer: str, device: torch.device) -> Collection:
    """`EmbeddingBagCollection` by itself; its gradients are dense."""
    model, (kind, options) = nn.Sequential(workload.collection(device)), OPTIMIZERS[optimizer]
    apply_optimizer_in_backward(kind, model.parameters(), {**options})  # which it writes into
    return Collection(model)


def _config(workload: Workload, optimizer: str, sharding: str) -> TrainingConfig:
    table = TableConfig(optimizer=NAMES[optimizer], learning_rate=operators.LEARNING_RATE, sharding=sharding)
    return TrainingConfig(batch_size=workload.batch_size, table=table)


def bare(workload: Workload, optimizer: str, device: torch.device, sharding: str, cached: bool = False) -> Collection:
    """`DistributedModelParallel` as TorchRec's own examples use it, with the plan of `distribute`."""
    model, (kind, options) = nn.Sequential(workload.collection(torch.device("meta"))), OPTIMIZERS[optimizer]
    if sharding == REPLICATED:  # for which `distribute` has no plan: to it, they are dense parameters
        replicated = ParameterSharding(REPLICATED, "dense", [*range(dist.get_world_size())])
        tables = dict.fromkeys((f"t{t}" for t in range(len(workload.table_rows))), replicated)
        plan = ShardingPlan({"0": EmbeddingModuleShardingPlan(tables)})
    else:
        apply_optimizer_in_backward(kind, model.parameters(), {**options})
        plan = plan_sharding(model, _config(workload, optimizer, sharding), device)
    for table in plan.plan["0"].values() if cached else ():
        table.compute_kernel = "fused_uvm_caching"
        table.cache_params = CacheParams(load_factor=operators.CACHED_SHARE)
    parallel = DistributedModelParallel(model, device=device, plan=plan)
    stepped = dict(in_backward_optimizer_filter(parallel.named_parameters()))
    after = [KeyedOptimizerWrapper(stepped, partial(kind, **options))] if stepped else []
    return Collection(parallel, CombinedOptimizer([parallel.fused_optimizer, *after]))


def ours(workload: Workload, optimizer: str, device: torch.device, sharding: str) -> Collection:
    """`torchrec_mtl.training.distributed.distribute`."""
    model = nn.Sequential(workload.collection(torch.device("meta")))
    return Collection(*distribute(model, _config(workload, optimizer, sharding), device))


ONE_PROCESS: dict[str, Callable[..., Candidate]] = {
    "TBE": operators.TableBatched,
    "our kernels": operators.OurKernels,
    "nn.EmbeddingBag": operators.Bags,
    "stacked by hand": operators.Stacked,
    "EBC": unsharded,
    "TBE cached UVM": partial(operators.TableBatched, cached=True),
    "quantised TBE": partial(operators.Quantised, operator_alone=True),
    "quantised EBC": operators.Quantised,
}
SHARDED = {f"DMP {kind}": partial(bare, sharding=kind) for kind in SHARDINGS[1:]}
SHARDED |= {f"DMP {kind} cached UVM": partial(bare, sharding=kind, cached=True) for kind in SHARDINGS[1:]}
SHARDED |= {f"ours {kind}": partial(ours, sharding=kind) for kind in SHARDINGS[1:]}
CANDIDATES = ONE_PROCESS | SHARDED


def runs(name: str, workload: Workload, ranks: int, device: str, optimizer: str) -> bool:
    """Whether there is such a candidate here, and whether it learns what whole tables learn, if it is to train."""
    precision, by_columns = workload.precision, any(kind in name for kind in ("column_wise", "grid_shard"))
    elsewhere = (name in ONE_PROCESS and ranks > 1) or ("UVM" in name and device != "cuda")
    if elsewhere or ("quantised" in name) != (precision == "int8"):
        return False
    if "row-wise" in optimizer and by_columns:  # each column shard has its own state, which is another optimizer
        return False
    has_kernels = device == "cpu" and precision == "fp32" and library.load()
    if name == "our kernels" and not has_kernels:
        return False
    if optimizer not in OFTEN and name in ("nn.EmbeddingBag", "stacked by hand", "EBC"):
        return False
    if "Adam" in optimizer:  # on the rows of a batch, which fbgemm does on a GPU
        by_rows = device == "cuda" or (has_kernels and name.startswith("our"))
        return by_rows and REPLICATED not in name and precision != "int8"
    by_fbgemm = name not in ("nn.EmbeddingBag", "stacked by hand", "EBC") and REPLICATED not in name
    return not optimizer or precision == "fp32" or (precision == "fp16" and by_fbgemm)  # fbgemm has states in fp32
