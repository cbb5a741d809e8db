"""How fast are batches read, against how fast Shared-Bottom trains on them? ``python -m benchmarks.data_reading``.

Two synthetic data sets: 26 fields of one id, and the same with a multi-valued one. One reader, one thread, batches of
1024, tables of 16 with the fused row-wise Adagrad. In each repeat Shared-Bottom takes its steps, and then every way of
reading hands out the whole split. "cold" readings begin with the files dropped from the page cache (what a disk or a
hypervisor keeps in its own cache stays).

It checks first that every way hands out every row once. ``benchmarks/results/data_reading.csv`` has a row a data set, a
way and a figure: samples a second, also as a multiple of Shared-Bottom's in the same round, and by how much the
process's own memory grew (file pages, which the kernel takes back when it needs them, left out). About five minutes.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torchrec import EmbeddingBagCollection
from torchrec.distributed.train_pipeline import TrainPipelineBase

from benchmarks import record
from torchrec_mtl import MultiTaskTrain
from torchrec_mtl.data import BatchLoader, Schema, Split, SyntheticFunnel, prepare_synthetic, read_split
from torchrec_mtl.losses import CrossEntropyLoss
from torchrec_mtl.models import SharedBottom
from torchrec_mtl.training.config import TrainingConfig
from torchrec_mtl.training.distributed import distribute, process_group

ROWS, QUICK_ROWS, REPEATS = 2_000_000, 10_000, 5
TRAINING = "Shared-Bottom trains"
CPU = torch.device("cpu")
BATCH_SIZE, TRAIN_STEPS, WINDOW = 1024, 100, 2**18
FIELDS: dict[str, Any] = {"base_rates": (0.2, 0.05), "field_sizes": (10_000, 100_000) * 13}
FUNNELS = {
    "26 fields": SyntheticFunnel(**FIELDS),
    "26 fields and lists of 0-4": SyntheticFunnel(**FIELDS, list_size=100_000),
}


def ways(window: int) -> dict[str, dict[str, Any]]:
    """Arguments of `BatchLoader`."""
    return {
        "in order": {},
        "shuffled": {"shuffle": True},
        f"shuffled, window {window}": {"shuffle": True, "shuffle_window": window},
    }


def train(directory: Path) -> Callable[[], tuple[float, float]]:
    """A Shared-Bottom; each call takes steps on the same batches, made before: samples a second, and no memory."""
    schema = Schema.load(directory)
    tables = EmbeddingBagCollection(tables=schema.embedding_configs(embedding_dim=16), device=torch.device("meta"))
    train_model = MultiTaskTrain(SharedBottom(tables, schema.tasks), CrossEntropyLoss(schema.tasks))
    model, optimizer = distribute(train_model, TrainingConfig(batch_size=BATCH_SIZE), CPU)
    loader = BatchLoader(read_split(directory, "train"), BATCH_SIZE, shuffle=True, drop_last=True)
    batches = [batch for batch, _ in zip(loader, range(TRAIN_STEPS), strict=False)]

    def step() -> tuple[float, float]:
        pipeline = TrainPipelineBase(model, optimizer, CPU)
        steps, began = iter(batches), time.perf_counter()
        for _ in batches:
            pipeline.progress(steps)
        return len(batches) * BATCH_SIZE / (time.perf_counter() - began), 0.0

    step()  # the first steps make optimizer states and buffers
    return step


def read(directory: Path, cold: bool, options: dict[str, Any]) -> tuple[float, float]:
    """Samples a second of one reader, and the growth of memory that is not a file's, in MiB."""
    if cold:  # nothing has the files mapped now, else the kernel would keep them
        for file in (directory / ".columns").rglob("*.npy"):
            handle = os.open(file, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)
    loader = BatchLoader(read_split(directory, "train"), BATCH_SIZE, **options)
    before, count, grown = own_memory(), 0, 0.0
    began = time.perf_counter()
    for step, batch in enumerate(loader):
        count += len(batch.labels)
        if step % 256 == 0:
            grown = max(grown, own_memory() - before)
    return count / (time.perf_counter() - began), grown


def own_memory() -> float:
    """Anonymous resident memory in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 2**10


def check(split: Split, window: int) -> None:
    """Stops unless every way hands out every row once."""
    for way, options in ways(window).items():
        rows = torch.cat(list(BatchLoader(split, BATCH_SIZE, **options).rows()))
        if not rows.sort().values.equal(torch.arange(len(split))):
            sys.exit(f"error: {way} does not hand out every row once, so nothing is timed")


def measure(name: str, directory: Path, repeats: int, window: int) -> list[record.Row]:
    """Rows of results for Shared-Bottom and for each way of reading, which take turns."""
    check(read_split(directory, "train"), window)
    candidates = {TRAINING: train(directory)}
    for cold in (False, True):
        for way, options in ways(window).items():
            candidates[f"{way}, cold" if cold else way] = partial(read, directory, cold, options)
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in candidates}
    for _ in range(repeats):
        for way, candidate in candidates.items():
            found[way].append(candidate())
    return rows_of(name, found)


def rows_of(name: str, found: dict[str, list[tuple[float, float]]]) -> list[record.Row]:
    """Two rows of results a way; ``found`` has samples a second and MiB of each round."""
    rows: list[record.Row] = []
    for way, of_rounds in found.items():
        speeds, growths = zip(*of_rounds, strict=True)
        times = record.ratio(speeds, [speed for speed, _ in found[TRAINING]])
        about = {"data": name, "way": way}
        rows.append({**about, "figure": "speed", "times_training": round(times, 1)})
        rows[-1] |= record.spread(speeds, "samples/s", 0)
        rows.append({**about, "figure": "growth of memory", **record.spread(growths, "MiB", 0)})
    return rows


def main() -> None:
    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--rows", type=int, help=f"of each data set ({ROWS})")
        parser.add_argument("--data", type=Path, default=Path("build"), help="folder for the data sets (%(default)s)")

    arguments = record.parse("data_reading", __doc__, options)
    circumstances = record.begin()
    num_rows = arguments.rows or (QUICK_ROWS if arguments.quick else ROWS)
    repeats = arguments.repeats or (1 if arguments.quick else REPEATS)
    rows: list[record.Row] = []
    with process_group(CPU):
        for name, funnel in FUNNELS.items():
            directory = prepare_synthetic(arguments.data, funnel, {"train": num_rows, "valid": 1, "test": 1})
            rows += measure(name, directory, repeats, min(WINDOW, num_rows // 2))
    rows = [{**row, "rows": num_rows, "batch_size": BATCH_SIZE} for row in rows]
    record.write(arguments.results, rows, circumstances)
    for row in rows:
        if row["figure"] == "speed":
            times = f"{row['times_training']:8.1f} times training"
            print(f"{row['data']:28}{row['way']:32}{row['median']:12,.0f} samples/s{times}")


if __name__ == "__main__":
    main()
