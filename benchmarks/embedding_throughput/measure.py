"""Checks and times candidates on the ranks of a group, and measures the memory of one."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks import record
from benchmarks.embedding_throughput.candidates import CANDIDATES, NAMES
from benchmarks.embedding_throughput.operators import EPS, LEARNING_RATE
from benchmarks.embedding_throughput.workload import CPU, DTYPES, STATES, Batch, Workload, table_bytes
from tests import processes
from torchrec_mtl.ops.embedding_bag import reference

TOLERANCES = {"fp32": 1e-5, "fp16": 2e-3, "int8": 1e-2}  # of the greatest value


@dataclass(frozen=True)
class Job:
    """What one group of ranks measures."""

    workload: Workload = Workload()  # noqa: RUF009  (it is frozen)
    candidates: tuple[str, ...] = ()  # the first is the baseline
    axis: str = "base"  # what differs from the base
    ranks: int = 1
    optimizer: str = ""  # empty for the forward pass alone
    repeats: int = 5
    ids_a_turn: int = 2**19  # a turn has as many batches as have this many ids, or one
    device: str = "cpu"  # or "cuda", with a GPU per rank
    threads: int = 1  # of each rank
    copy_mib: int = 512  # size of the buffer that is copied, over all ranks


def in_ranks(function: Callable[[Job, torch.device], Any], job: Job) -> Any:
    """Returns what ``function`` returns on the first of the job's ranks, which are new processes."""
    found = get_context("forkserver").SimpleQueue()
    processes.run(_on_rank, job.ranks, function, job, found, backend="nccl" if job.device == "cuda" else "gloo")
    return found.get()


def _on_rank(function: Callable[[Job, torch.device], Any], job: Job, found: Any) -> None:
    logging.captureWarnings(True)
    logging.disable(logging.WARNING)  # they are repeated for each of 26 tables
    torch.set_num_threads(job.threads)
    device = CPU if job.device == "cpu" else torch.device("cuda", dist.get_rank())
    if device != CPU:
        torch.cuda.set_device(device)
    returned = function(job, device)
    if dist.get_rank() == 0:
        found.put(returned)


def check(job: Job, device: torch.device) -> str:
    """Compares the candidates with float64 arithmetic on small tables; returns what is wrong, or an empty string."""
    rows = {name: min(getattr(job.workload, name), 500) for name in ("max_rows", "rows")}
    small, most = replace(job.workload, **rows, batch_size=64 * job.ranks), TOLERANCES[job.workload.precision]
    for name in job.candidates:
        off = torch.tensor(_differences(name, small, job.optimizer, device), device=device)
        dist.all_reduce(off, dist.ReduceOp.MAX)
        for what, worst in zip(("pooled embeddings", "updated tables"), off.tolist(), strict=True):
            if worst > most:
                sentence = f"{what} are off by {worst:.1e} of the greatest value, more than {most:.0e}: {small}"
                return f"{name}, {job.optimizer or 'forward'}, {job.ranks} ranks: {sentence}"
    return ""


def _differences(name: str, workload: Workload, optimizer: str, device: torch.device) -> tuple[float, float]:
    """How far this rank's embeddings and, after three steps, its parts of the tables are off."""
    rank, ranks, generator = dist.get_rank(), dist.get_world_size(), torch.Generator().manual_seed(0)
    drawn = [torch.randn(rows, workload.embedding_dim, generator=generator) for rows in workload.table_rows]
    tables = [table.to(DTYPES[workload.precision]).double() for table in drawn]
    states = [[t.new_zeros(t.shape[: 1 + (of == "column")]) for t in tables] for of in STATES.get(optimizer, ())]
    candidate = CANDIDATES[name](workload, optimizer, device).fill(tables)
    parts = workload.batches(3, 1, rank, ranks, device)
    pooled = torch.stack([table[ids].sum(1) for table, ids in zip(tables, parts[0].ids.cpu(), strict=True)], 1)
    with torch.no_grad():
        off = _difference(candidate.forward(parts[0]).view(pooled.shape), pooled[:, candidate.order])
    if not optimizer:
        return off, 0.0
    fields = range(len(tables))
    for step, (part, whole) in enumerate(zip(parts, workload.batches(3, 1), strict=True), 1):
        candidate.train(part)
        features, gradient = whole.sparse_features, whole.gradient.double().div(ranks).flatten(1)
        bags = fields, fields, [False] * len(fields), features.values(), features.offsets(), len(gradient)
        kind = NAMES[optimizer].removeprefix("sparse_")
        reference.update(tables, states, *bags, gradient, kind, learning_rate=LEARNING_RATE, eps=EPS, step=step)
    shards = [(shard, tables[t][index]) for t, index, shard in candidate.shards() if shard.numel()]
    return off, max((_difference(*shard) for shard in shards), default=0.0)


def _difference(actual: Tensor, expected: Tensor) -> float:
    """Relative to the greatest value; infinite where something is not a number."""
    worst = (actual.cpu().double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    return worst.nan_to_num(nan=torch.inf).item()


def throughput(job: Job, device: torch.device) -> tuple[float, dict[str, list[float]]]:
    """Bytes that a batch moves; and, by turn, its seconds until all ranks are done, and of copying the buffer."""
    workload = job.workload
    built = {name: CANDIDATES[name](workload, job.optimizer, device).fill() for name in job.candidates}
    count = max(1, job.ids_a_turn // (workload.batch_size * workload.ids_a_bag * len(workload.table_rows)))
    batches = workload.batches(count, 0, dist.get_rank(), job.ranks, device)
    source, target = (torch.ones(job.copy_mib // job.ranks * 2**18, device=device) for _ in range(2))
    steps = {name: each.train if job.optimizer else torch.no_grad()(each.forward) for name, each in built.items()}

    def turn(step: Callable[[Batch], Any]) -> float:
        def until_all_are_done() -> None:
            for batch in batches:
                step(batch)
            dist.barrier()

        dist.barrier()
        return record.seconds(until_all_are_done, job.device) / len(batches)

    times = record.in_turns({**steps, "copy": lambda _: target.copy_(source)}, job.repeats, turn)
    return table_bytes(workload, workload.batches(count, 0), job.optimizer), times


def peak_memory(job: Job, device: torch.device) -> float:
    """Peak MiB of a process that trains the job's candidate; on a GPU, of its memory."""
    candidate = CANDIDATES[job.candidates[0]](job.workload, job.optimizer, device).fill()
    for batch in job.workload.batches(1, 0, device=device) * 2:
        candidate.train(batch)
    return record.peak_memory() if device == CPU else torch.cuda.max_memory_allocated() / 2**20
