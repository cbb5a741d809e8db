"""Candidates by name, and which of them can do what."""

from functools import partial
from typing import Any

import torch

from benchmarks.embedding_throughput import candidates, sharded
from benchmarks.embedding_throughput.candidates import Candidate, Initializer
from benchmarks.embedding_throughput.workload import Workload
from torchrec_mtl.training.config import SHARDINGS
from torchrec_mtl.training.sharding import REPLICATED

SHARDING_TYPES = SHARDINGS[1:]
COLUMN_WISE = ("column_wise", "table_column_wise", "grid_shard")
BAGS, STACKED, EBC, TBE, TBE_CACHED = "nn.EmbeddingBag", "stacked by hand", "EBC", "TBE", "TBE cached UVM"
QUANTISED_EBC, QUANTISED_TBE = "quantised EBC", "quantised TBE"
PLAIN: dict[str, Any] = {
    BAGS: candidates.Bags,
    STACKED: candidates.Stacked,
    TBE: candidates.TableBatched,
    TBE_CACHED: partial(candidates.TableBatched, cached=True),
}
QUANTISED = {QUANTISED_EBC: False, QUANTISED_TBE: True}
ONE_PROCESS = (BAGS, STACKED, EBC, TBE, TBE_CACHED, *QUANTISED)


def bare(sharding: str) -> str:
    """TorchRec's own `DistributedModelParallel`."""
    return f"DMP {sharding}"


def bare_cached(sharding: str) -> str:
    """The same with tables in host memory and a cache on the GPU."""
    return f"DMP {sharding} cached UVM"


def ours(sharding: str) -> str:
    """`distribute`."""
    return f"ours {sharding}"


SHARDED: dict[str, Any] = {
    name(kind): partial(make, sharding=kind)
    for kind in SHARDING_TYPES
    for name, make in (
        (bare, sharded.bare),
        (bare_cached, partial(sharded.bare, cached=True)),
        (ours, sharded.ours),
    )
}
NAMES = (*ONE_PROCESS, *SHARDED)


def is_plain(name: str) -> bool:
    """Whether it fills its tables in their order; TorchRec's start as `distribute` starts them."""
    return name in PLAIN or name in QUANTISED


def build(name: str, workload: Workload, optimizer: str, device: torch.device, init_fn: Initializer) -> Candidate:
    """The candidate, on every rank."""
    if name in QUANTISED:
        return candidates.Quantised(workload, device, init_fn, QUANTISED[name])
    if name == EBC:
        return sharded.unsharded(workload, optimizer, device, init_fn)
    return (PLAIN | SHARDED)[name](workload, optimizer, device, init_fn)


def trains(name: str, workload: Workload, optimizer: str) -> bool:
    """Whether the candidate's tables can be updated, and learn what whole tables do.

    A column-wise shard keeps row-wise Adagrad's state for itself, which is another optimizer. Tables of 16 bits have
    their state in 32 under fbgemm's operators alone.
    """
    if name in QUANTISED or (optimizer == "row-wise Adagrad" and any(kind in name for kind in COLUMN_WISE)):
        return False
    return workload.precision == "fp32" or (name not in (BAGS, STACKED, EBC) and REPLICATED not in name)


def runs(name: str, workload: Workload, world_size: int, device: torch.device) -> bool:
    """Whether it can be had at all."""
    if (name in QUANTISED) != (workload.precision == "int8"):
        return False
    if "cached UVM" in name and device.type != "cuda":
        return False
    return world_size == 1 or name in SHARDED
