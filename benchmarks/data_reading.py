"""Measures how fast batches are read, and how fast Shared-Bottom trains on them: ``python -m benchmarks.data_reading``.

Two synthetic data sets: 26 fields of one id, and the same with a multi-valued field. One thread, one reader, batches of
1024, tables of 16 columns with fused row-wise Adagrad. Rows come from mapped columns, or are streamed from a parquet
file (zstd, row groups of 65,536 rows). In each round Shared-Bottom takes its steps, and then every way of reading hands
out the whole split. "cold" readings begin with the files dropped from the page cache, but not from caches of the disk
or the hypervisor. Growth of memory leaves out file pages, which the kernel can take back. Before anything is timed,
every way must hand out every row once. About eight minutes.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import polars as pl
import torch
from torchrec.distributed.train_pipeline import TrainPipelineBase

from benchmarks import record
from torchrec_mtl.data import BatchLoader, Schema, StreamLoader, read_split, stream_split
from torchrec_mtl.data.steps import StepLoader
from torchrec_mtl.datasets import SyntheticFunnel, prepare_synthetic
from torchrec_mtl.jobs.build import build_model
from torchrec_mtl.jobs.run_config import RunConfig
from torchrec_mtl.systems import SYSTEMS
from torchrec_mtl.training.config import TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.process_group import process_group

ROWS, QUICK_ROWS, REPEATS = 2_000_000, 10_000, 5
CPU, TRAINING = torch.device("cpu"), "Shared-Bottom trains"
BATCH_SIZE, TRAIN_STEPS, WINDOW = 1024, 100, 2**18
STREAMED, GROUP_ROWS = "streamed", 2**16
RATES, FIELDS = (0.2, 0.05), (10_000, 100_000) * 13
LIST_SIZES = {"26 fields": 0, "26 fields and lists of 0-4": 100_000}
Way = Callable[[Path], StepLoader]  # given the folder of a data set


def train(directory: Path) -> Callable[[], tuple[float, float]]:
    """Returns what trains a Shared-Bottom on batches made before: samples a second, and no growth of memory."""
    config = RunConfig(SYSTEMS["shared_bottom"], embedding_dim=16, training=TrainingConfig(batch_size=BATCH_SIZE))
    model, optimizer = distribute(build_model(config, Schema.load(directory), CPU), config.training, CPU)
    loader = BatchLoader(read_split(directory, "train"), BATCH_SIZE, shuffle=True, drop_last=True)
    batches = [batch for batch, _ in zip(loader, range(TRAIN_STEPS), strict=False)]

    def take_steps() -> tuple[float, float]:
        pipeline, steps = TrainPipelineBase(model, optimizer, CPU), iter(batches)
        taken = record.seconds(lambda: [pipeline.progress(steps) for _ in batches])
        return len(batches) * BATCH_SIZE / taken, 0.0

    take_steps()  # the first ones make optimizer states and buffers
    return take_steps


def mapped(directory: Path, **options: bool | int) -> StepLoader:
    """Batches of mapped columns."""
    return BatchLoader(read_split(directory, "train"), BATCH_SIZE, **options)


def streamed(directory: Path, **options: bool | int) -> StepLoader:
    """Batches of the same rows, read in place."""
    return StreamLoader(stream_split(directory / STREAMED, "train"), BATCH_SIZE, **options)


def copy_in_row_groups(directory: Path) -> None:
    """Writes the training rows again, in row groups of the size that streams are made for."""
    (directory / STREAMED).mkdir(exist_ok=True)
    Schema.load(directory).save(directory / STREAMED)
    frame = pl.read_parquet(directory / "train.parquet")
    frame.write_parquet(directory / STREAMED / "train.parquet", compression="zstd", row_group_size=GROUP_ROWS)


def read(directory: Path, cold: bool, way: Way) -> tuple[float, float]:
    """Returns samples a second of one reader, and by how many MiB anonymous memory grew."""
    if cold:  # no process has the files mapped now, so that the kernel can drop them
        for file in (*directory.rglob("*.npy"), *directory.rglob("*.parquet")):
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    loader, num_rows = way(directory), 0
    before, grown, began = anonymous_memory(), 0.0, time.perf_counter()
    for step, batch in enumerate(loader):
        num_rows += len(batch.labels)
        if step % 256 == 0:
            grown = max(grown, anonymous_memory() - before)
    return num_rows / (time.perf_counter() - began), grown


def anonymous_memory() -> float:
    """Returns resident memory in MiB without file pages."""
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 2**10


def check(loaders: Mapping[str, StepLoader], num_rows: int) -> None:
    """Stops unless every way hands out every row once."""
    for way, loader in loaders.items():
        if not torch.cat(list(loader.rows())).sort().values.equal(torch.arange(num_rows)):
            sys.exit(f"error: {way} does not hand out every row once, so nothing is timed")


def measure(directory: Path, repeats: int, ways: dict[str, Way]) -> dict[str, list[tuple[float, float]]]:
    """Returns samples a second and MiB in each round, for Shared-Bottom and for each way of reading."""
    copy_in_row_groups(directory)
    check({name: way(directory) for name, way in ways.items()}, len(read_split(directory, "train")))
    candidates = {TRAINING: train(directory)}
    for cold in (False, True):
        for name, way in ways.items():
            candidates[f"{name}, cold" if cold else name] = partial(read, directory, cold, way)
    return record.in_turns(candidates, repeats, timer=lambda candidate: candidate(), warm_up=0)


def rows_of(found: dict[str, list[tuple[float, float]]], about: record.Row) -> list[record.Row]:
    """Returns two rows of results for each way."""
    rows = []
    for way, of_rounds in found.items():
        speeds, growths = zip(*of_rounds, strict=True)
        times = {"times_training": round(record.ratio(speeds, [speed for speed, _ in found[TRAINING]]), 1)}
        rows.append({**about, "way": way, "figure": "speed", **times, **record.spread(speeds, "samples/s", 0)})
        rows.append({**about, "way": way, "figure": "growth of memory", **record.spread(growths, "MiB", 0)})
    return rows


def main() -> None:
    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--rows", type=int, help=f"rows of each data set ({ROWS})")
        parser.add_argument("--data", type=Path, default=Path("build"), help="folder for the data sets (%(default)s)")

    arguments = record.parse("data_reading", __doc__, options)
    num_rows = arguments.rows or (QUICK_ROWS if arguments.quick else ROWS)
    window, repeats = min(WINDOW, num_rows // 2), arguments.repeats or (1 if arguments.quick else REPEATS)
    ways: dict[str, Way] = {"in order": mapped, "shuffled": partial(mapped, shuffle=True)}
    ways[f"shuffled, window {window}"] = partial(mapped, shuffle=True, shuffle_window=window)
    ways["streamed, in order"] = streamed
    ways[f"streamed, shuffled, window {window}"] = partial(streamed, shuffle=True, shuffle_window=window)
    with record.Results(arguments.results) as results, process_group(CPU):
        for name, list_size in LIST_SIZES.items():
            funnel = SyntheticFunnel(RATES, FIELDS, list_size=list_size)
            directory = prepare_synthetic(arguments.data, funnel, {"train": num_rows, "valid": 1, "test": 1})
            found = measure(directory, repeats, ways)
            results.add(*rows_of(found, {"data": name, "rows": num_rows, "batch_size": BATCH_SIZE}))


if __name__ == "__main__":
    main()
