"""Measures what histories cost beside pooling: ``python -m benchmarks.histories``.

A training step (forward pass, backward pass, optimizer) of Shared-Bottom on 12 fields of one id and one of 0 to 50 ids,
most of them few, in tables of 100,000 rows of 16 columns; batches of 1024, row-wise Adagrad fused with the backward
pass, one thread, one process; processor time. The long field is pooled, or attended by its candidate (DIN), or it goes
through a transformer layer before, whose attention pads no history, or all to the longest. Before anything is timed,
the latter two must report the same loss. Two minutes.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torchrec import KeyedJaggedTensor

from benchmarks import record
from torchrec_mtl.data import Field, MultiTaskBatch, Schema
from torchrec_mtl.jobs.build import build_model
from torchrec_mtl.jobs.run_config import RunConfig
from torchrec_mtl.modules import HistoryConfig, jagged
from torchrec_mtl.systems import SYSTEMS
from torchrec_mtl.tasks import TaskChain
from torchrec_mtl.training.config import TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.process_group import process_group, set_seed

CPU, LONGEST, REPEATS = torch.device("cpu"), 50, 15
CANDIDATES = {"last_items": "item"}
WAYS = {
    "pooled": HistoryConfig(),
    "din": HistoryConfig(CANDIDATES, max_length=LONGEST),
    "transformer": HistoryConfig(CANDIDATES, max_length=LONGEST, transformer_layers=1, num_heads=2),
    "transformer, padded": HistoryConfig(CANDIDATES, max_length=LONGEST, transformer_layers=1, num_heads=2),
}


@dataclass(frozen=True)
class Size:
    """What the cost depends on."""

    batch_size: int = 1024
    num_fields: int = 12
    num_rows: int = 100_000


def schema(size: Size) -> Schema:
    """Fields of one id, the first of which attends the history."""
    names = ["item", *(f"field_{number}" for number in range(1, size.num_fields))]
    fields = [Field(name, size.num_rows) for name in names]
    history = Field("last_items", size.num_rows, multi_valued=True, shares="item")
    return Schema("histories", [*fields, history], TaskChain(["click", "purchase"]))


def batch(size: Size) -> MultiTaskBatch:
    """Ids from a power law; a quarter of the histories is longer than 22 ids, and the mean is 12."""
    rng = np.random.default_rng(0)
    lengths = (rng.random(size.batch_size) ** 3 * (LONGEST + 1)).astype(np.int64)
    ids = rng.zipf(1.2, size.batch_size * size.num_fields + int(lengths.sum())) % size.num_rows
    names = [field.name for field in schema(size).fields]
    of_one = np.ones(size.batch_size * size.num_fields, np.int64)
    sparse = KeyedJaggedTensor.from_lengths_sync(
        names, torch.from_numpy(ids), torch.from_numpy(np.concatenate([of_one, lengths]))
    )
    labels = (rng.random((size.batch_size, 2)) < 0.3).cumprod(1)
    return MultiTaskBatch(torch.empty(size.batch_size, 0), sparse, torch.from_numpy(labels).float())


@contextmanager
def _attending(way: str) -> Iterator[None]:
    usual = jagged.attend
    if way.endswith("padded"):
        jagged.attend = jagged._padded
    try:
        yield
    finally:
        jagged.attend = usual


def stepping(way: str, size: Size, rows: MultiTaskBatch) -> Callable[[], float]:
    """Returns what takes a step, and returns its loss."""
    config = RunConfig(SYSTEMS["shared_bottom"], 16, histories=WAYS[way], training=TrainingConfig())
    set_seed(0)
    model, optimizer = distribute(build_model(config, schema(size), CPU), config.training, CPU)

    def step() -> float:
        with _attending(way):
            optimizer.zero_grad()
            loss, _ = model(rows)
            loss.backward()
            optimizer.step()
        return loss.item()

    return step


def check(losses: dict[str, float]) -> None:
    """Stops unless both ways of attending report the same loss of the first batch."""
    padded, jagged_loss = losses["transformer, padded"], losses["transformer"]
    if abs(padded - jagged_loss) > 1e-5 * abs(padded):
        sys.exit(f"error: the loss is {jagged_loss} without padding and {padded} with it, so nothing is timed")


def main() -> None:
    arguments = record.parse("histories", __doc__)
    size = Size(64, 3, 100) if arguments.quick else Size()
    repeats = arguments.repeats or (1 if arguments.quick else REPEATS)
    with record.Results(arguments.results) as results, process_group(CPU):
        rows = batch(size)
        steps = {way: stepping(way, size, rows) for way in WAYS}
        check({way: step() for way, step in steps.items()})
        times = record.in_turns(steps, repeats, record.processor_seconds, warm_up=2)
        for way, taken in times.items():
            about = {"history": way, "batch_size": size.batch_size}
            ratio = round(record.ratio(taken, times["pooled"]), 2)
            results.add({**about, "times_pooled": ratio, **record.spread([1e3 * each for each in taken], "ms", 1)})


if __name__ == "__main__":
    main()
