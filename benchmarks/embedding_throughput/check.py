"""Whether a candidate pools and learns what plain arithmetic in float64 does; no figures without."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.embedding_throughput import naming
from benchmarks.embedding_throughput.candidates import EPS, LEARNING_RATE, Candidate
from benchmarks.embedding_throughput.sharded import unsharded
from benchmarks.embedding_throughput.workload import CPU, Batch, Workload

MAX_ROWS, BATCH_SIZE, STEPS = 500, 64, 3
TOLERANCES = {"fp32": 1e-5, "fp16": 2e-3}  # of the greatest value; 16 bits have 11 of precision
SEED = 1

Build = Callable[[str, Workload, str, torch.device, Callable[[Tensor], Tensor]], Candidate]


class WrongCandidateError(RuntimeError):
    """A candidate that computes something else."""


def small(workload: Workload) -> Workload:
    """The same but for its size, which the definition in float64 would take too long for."""
    return replace(
        workload, max_rows=min(workload.max_rows, MAX_ROWS), rows=min(workload.rows, MAX_ROWS), batch_size=BATCH_SIZE
    )


def pool(tables: list[Tensor], ids: Tensor) -> Tensor:
    """``[B, F, D]``, of ids ``[F, B, L]``."""
    return torch.stack([table[of_table].sum(1) for table, of_table in zip(tables, ids, strict=True)], 1)


def step(tables: list[Tensor], states: list[Tensor], batch: Batch, optimizer: str, share: float) -> None:
    """The update's definition, in place; gradients are multiplied with ``share``."""
    for t, (table, state, ids) in enumerate(zip(tables, states, batch.ids, strict=True)):
        of_ids = batch.gradient[:, t].double().mul(share).repeat_interleave(ids.shape[1], 0)
        gradient = torch.zeros_like(table).index_add_(0, ids.flatten(), of_ids)
        if optimizer == "row-wise Adagrad":
            state += gradient.square().mean(1)
            gradient /= state.sqrt()[:, None] + EPS
        table -= LEARNING_RATE * gradient


def _difference(actual: Tensor, expected: Tensor) -> float:
    """Relative to the greatest value; infinite where something is not a number."""
    if not actual.numel():
        return 0.0
    worst = (actual.cpu().double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    return worst.nan_to_num(nan=torch.inf).item()


def differences(
    name: str, workload: Workload, optimizer: str, device: torch.device, build: Build = naming.build
) -> tuple[float, float]:
    """By how much the embeddings and, after some steps, this rank's parts of the tables are wrong."""
    workload = small(workload)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    whole = workload.batches(STEPS, SEED)
    own = workload.batches(STEPS, SEED, rank, world_size, device)
    start = unsharded(workload, optimizer, CPU, torch.nn.init.normal_)
    tables = [table.double() for *_, table in start.shards()]
    states = [table.new_zeros(len(table)) for table in tables]
    drawn = iter(tables)  # a candidate of one process is handed them one by one; TorchRec's start as `start` did

    def next_table(table: Tensor) -> Tensor:
        expected = next(drawn)
        return table.copy_(expected)

    candidate = build(name, workload, optimizer, device, next_table if naming.is_plain(name) else torch.nn.init.normal_)
    with torch.no_grad():
        embeddings = _difference(candidate.pooled(own[0]), pool(tables, own[0].ids.cpu()))
    if not naming.trains(name, workload, optimizer):
        return embeddings, 0.0
    for batch, global_batch in zip(own, whole, strict=True):
        candidate.train(batch)
        step(tables, states, global_batch, optimizer, 1 / world_size)
    of_shards = [
        _difference(shard, tables[t][row : row + shard.shape[0], column : column + shard.shape[1]])
        for t, row, column, shard in candidate.shards()
    ]
    return embeddings, max(of_shards, default=0.0)


def tolerance(workload: Workload) -> float:
    """Of the greatest value. A value in int8 is off by half a step at most, a 510th of its row's range."""
    return TOLERANCES.get(workload.precision, 1 / 100)


def check(name: str, workload: Workload, optimizer: str, device: torch.device, build: Build = naming.build) -> None:
    """Stops all ranks unless the candidate is right on every one.

    Raises:
        WrongCandidateError: with what is off and by how much.
    """
    own = differences(name, workload, optimizer, device, build)
    gathered: list[tuple[float, float]] = [(0.0, 0.0)] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    for what, values in zip(("pooled embeddings", "updated tables"), zip(*gathered, strict=True), strict=True):
        if not max(values) <= tolerance(workload):
            raise WrongCandidateError(
                f"{name}, {optimizer}, {dist.get_world_size()} ranks: {what} are off by {max(values):.1e} of the "
                f"greatest value, more than {tolerance(workload):.0e}: {workload}"
            )
