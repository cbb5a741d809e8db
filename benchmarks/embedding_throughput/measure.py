"""Times candidates on the ranks of a group, and the memory of one in processes of its own."""

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks import memory, record
from benchmarks.embedding_throughput import naming
from benchmarks.embedding_throughput.candidates import Candidate
from benchmarks.embedding_throughput.check import check
from benchmarks.embedding_throughput.traffic import copying, table_bytes
from benchmarks.embedding_throughput.workload import Batch, Workload

NUM_BATCHES, SEED = 4, 0
COPY = "copy"
FORWARD, TRAINING = "forward", "training"


@dataclass(frozen=True)
class Job:
    """What one group of ranks measures.

    Args:
        workload: tables and ids.
        candidates: names; the first is the baseline.
        optimizers: each is measured by itself.
        repeats: turns.
        device: ``"cpu"``, or ``"cuda"`` with a GPU a rank.
        threads: of each rank.
        copy_mib: of the buffer that is copied, all ranks' parts together.
        block_ms: how long a turn is at least, in whole batches.
    """

    workload: Workload
    candidates: tuple[str, ...]
    optimizers: tuple[str, ...]
    repeats: int = 5
    device: str = "cpu"
    threads: int = 1
    copy_mib: int = 512
    block_ms: float = 60.0

    def on_rank(self) -> torch.device:
        """Sets this rank up, and names its device."""
        for package in ("torch", "torchrec"):  # they tell the same once for each of 26 tables
            logging.getLogger(package).setLevel(logging.ERROR)
            warnings.filterwarnings("ignore", module=package)
        torch.set_num_threads(self.threads)
        if self.device == "cpu":
            return torch.device("cpu")
        torch.cuda.set_device(dist.get_rank())
        return torch.device("cuda", dist.get_rank())


def fill(table: Tensor) -> Tensor:
    """Any value will do for time; but all of the memory must be written, or its pages would be one page of zeros."""
    return torch.nn.init.constant_(table, 0.01)


def together(device: str, function: Callable[[], object]) -> float:
    """Seconds until all ranks have done it."""

    def until_all_have() -> None:
        function()
        dist.barrier()

    dist.barrier()
    return record.seconds(until_all_have, device)


def lookup(candidate: Candidate, batch: Batch) -> None:
    """The forward pass alone."""
    with torch.no_grad():
        candidate.forward(batch)


def block(function: Callable[[Batch], object], batches: list[Batch], calls: int) -> None:
    """One batch after another, so that the rows of one are not in the cache for the next."""
    for call in range(calls):
        function(batches[call % len(batches)])


def of_first_rank(value: float) -> float:
    """What all ranks then go by."""
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def calls_of(function: Callable[[Batch], object], batches: list[Batch], job: Job) -> int:
    """How many batches make a turn long enough; warms up. The same on all ranks."""
    once = partial(block, function, batches, 1)
    taken = of_first_rank(together(job.device, once))
    if taken < 10 * job.block_ms / 1e3:  # else one is enough, though the first is slow
        taken = of_first_rank(together(job.device, once))
    return max(1, min(100, round(job.block_ms / 1e3 / taken)))


def in_turns(functions: Mapping[str, Callable[[Batch], object]], batches: list[Batch], job: Job) -> dict[str, Any]:
    """Seconds a batch, by turns; and of copying the buffer once."""
    calls = {name: calls_of(function, batches, job) for name, function in functions.items()}
    copy = copying(job.copy_mib // dist.get_world_size(), batches[0].ids.device)
    copy()
    blocks = {name: partial(block, function, batches, calls[name]) for name, function in functions.items()}
    timer = partial(together, job.device)
    times = record.in_turns({**blocks, COPY: copy}, job.repeats, timer, warm_up=0)
    return {name: [seconds / calls.get(name, 1) for seconds in own] for name, own in times.items()}


def _directions(job: Job, optimizer: str, batches: list[Batch]) -> list[dict[str, Any]]:
    """Of the candidates with one optimizer; the forward pass, which has none, with the first."""
    wanted = [name for name in job.candidates if naming.trains(name, job.workload, optimizer)]
    first = optimizer == job.optimizers[0]
    if not wanted and not first:
        return []
    device = batches[0].ids.device
    built = {name: naming.build(name, job.workload, optimizer, device, fill) for name in job.candidates}
    turns: dict[str, dict[str, Callable[[Batch], object]]] = {}
    if first:
        turns[FORWARD] = {name: partial(lookup, candidate) for name, candidate in built.items()}
    if wanted:
        turns[TRAINING] = {name: built[name].train for name in wanted}
    return [
        {"direction": direction, "optimizer": optimizer, "seconds": in_turns(functions, batches, job)}
        for direction, functions in turns.items()
    ]


def throughput(job: Job) -> dict[str, Any]:
    """On every rank: the check, then seconds a batch by candidate, optimizer and direction."""
    device, workload = job.on_rank(), job.workload
    for optimizer in job.optimizers:
        for name in job.candidates:
            check(name, workload, optimizer, device)
    batches = workload.batches(NUM_BATCHES, SEED, dist.get_rank(), dist.get_world_size(), device)
    measured = [found for optimizer in job.optimizers for found in _directions(job, optimizer, batches)]
    whole = workload.batches(NUM_BATCHES, SEED)
    moved = {optimizer: table_bytes(workload, whole, optimizer) for optimizer in job.optimizers}
    return {"measured": measured, "bytes": {**moved, FORWARD: table_bytes(workload, whole, None)}}


def pairs(job: Job, count: int, ours_first: bool) -> list[list[float]]:
    """On every rank: seconds a training step of the job's two candidates, in alternating order, ``count`` times."""
    device, workload, (optimizer,) = job.on_rank(), job.workload, job.optimizers
    for name in job.candidates:
        check(name, workload, optimizer, device)
    batches = workload.batches(NUM_BATCHES, SEED, dist.get_rank(), dist.get_world_size(), device)
    order = job.candidates[:: -1 if ours_first else 1]
    built = {name: naming.build(name, workload, optimizer, device, fill) for name in order}
    calls = max(calls_of(candidate.train, batches, job) for candidate in built.values())
    blocks = {name: partial(block, built[name].train, batches, calls) for name in job.candidates}
    found = []
    for number in range(count):
        turn = {name: blocks[name] for name in job.candidates[:: -1 if number % 2 else 1]}
        times = record.in_turns(turn, 1, partial(together, job.device), warm_up=0)
        found.append([times[name][0] / calls for name in job.candidates])
    return found


def peak_memory(job: Job) -> float:
    """On every rank: MiB at most of training the job's one candidate, on the rank that takes most; on a GPU its own."""
    device, workload, (name,), (optimizer,) = job.on_rank(), job.workload, job.candidates, job.optimizers
    batches = workload.batches(1, SEED, dist.get_rank(), dist.get_world_size(), device)
    candidate = naming.build(name, workload, optimizer, device, fill)
    for _ in range(2):
        candidate.train(batches[0])
    peak = memory.peak_memory()
    if job.device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    gathered = [0.0] * dist.get_world_size()
    dist.all_gather_object(gathered, peak)
    return max(gathered)
