"""How fast are batches read, against how fast Shared-Bottom trains on them? ``python -m benchmarks.data_reading``.

Two synthetic data sets: 26 fields of one id, and the same with a multi-valued one. One reader, one thread, batches of
1024, tables of 16 with the fused row-wise Adagrad. In each repeat Shared-Bottom takes its steps, and then every way of
reading hands out the whole split. "cold" readings begin with the files dropped from the page cache (what a disk or a
hypervisor keeps in its own cache stays).

``benchmarks/results/data_reading.csv`` has a row a data set and a way: samples a second (median, p20 and p80), the
median as a multiple of Shared-Bottom's in the same repeat, and by how much the process's own memory grew (file pages,
which the kernel takes back when it needs them, left out).
"""

import argparse
import csv
import os
import subprocess
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torchrec import EmbeddingBagCollection
from torchrec.distributed.train_pipeline import TrainPipelineBase

from torchrec_mtl import MultiTaskTrain
from torchrec_mtl.data import BatchLoader, Schema, SyntheticFunnel, prepare_synthetic, read_split
from torchrec_mtl.losses import CrossEntropyLoss
from torchrec_mtl.models import SharedBottom
from torchrec_mtl.training.config import TrainingConfig
from torchrec_mtl.training.distributed import distribute, process_group

RESULTS = Path(__file__).parent / "results" / "data_reading.csv"
CPU = torch.device("cpu")
BATCH_SIZE, TRAIN_STEPS, WINDOW = 1024, 100, 2**18
FIELDS = {"base_rates": (0.2, 0.05), "field_sizes": (10_000, 100_000) * 13}
FUNNELS = {
    "26 fields": SyntheticFunnel(**FIELDS),
    "26 fields and lists of 0-4": SyntheticFunnel(**FIELDS, list_size=100_000),
}
WAYS: dict[str, dict[str, object]] = {
    "in order": {},
    "shuffled": {"shuffle": True},
    f"shuffled, window {WINDOW}": {"shuffle": True, "shuffle_window": WINDOW},
}


def train(directory: Path) -> Callable[[], float]:
    """A Shared-Bottom; each call takes steps on the same batches, made before, and gives samples a second."""
    schema = Schema.load(directory)
    tables = EmbeddingBagCollection(tables=schema.embedding_configs(embedding_dim=16), device=torch.device("meta"))
    train_model = MultiTaskTrain(SharedBottom(tables, schema.tasks), CrossEntropyLoss())
    model, optimizer = distribute(train_model, TrainingConfig(batch_size=BATCH_SIZE), CPU)
    loader = BatchLoader(read_split(directory, "train"), BATCH_SIZE, shuffle=True, drop_last=True)
    batches = [batch for batch, _ in zip(loader, range(TRAIN_STEPS), strict=False)]

    def samples_per_second() -> float:
        pipeline = TrainPipelineBase(model, optimizer, CPU)
        steps, began = iter(batches), time.perf_counter()
        for _ in batches:
            pipeline.progress(steps)
        return len(batches) * BATCH_SIZE / (time.perf_counter() - began)

    samples_per_second()  # the first steps make optimizer states and buffers
    return samples_per_second


def read(directory: Path, cold: bool, options: dict[str, object]) -> tuple[float, float]:
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


def measure(name: str, directory: Path, repeats: int) -> list[dict[str, object]]:
    """A row for Shared-Bottom and for each way of reading."""
    samples_per_second, found = train(directory), {}
    for repeat in range(repeats):
        print(f"{name}: repeat {repeat + 1} of {repeats}", flush=True)
        speeds = {"Shared-Bottom trains": (samples_per_second(), 0.0)}
        for cold in (False, True):
            for way, options in WAYS.items():
                speeds[f"{way}, cold" if cold else way] = read(directory, cold, options)
        for way, (speed, grown) in speeds.items():
            found.setdefault(way, []).append((speed, speed / speeds["Shared-Bottom trains"][0], grown))
    rows = []
    for way, of_repeats in found.items():
        speeds, ratios, growths = np.array(of_repeats).T
        p20, median, p80 = np.quantile(speeds, [0.2, 0.5, 0.8]).round()
        row = {"data": name, "way": way, "median": median, "p20": p20, "p80": p80}
        rows.append({**row, "times_training": round(np.median(ratios), 1), "memory_mib": round(growths.max())})
    return rows


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000, help="of each data set (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", type=Path, default=Path("build"), help="folder for the data sets (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with process_group(CPU):
        for name, funnel in FUNNELS.items():
            directory = prepare_synthetic(args.data, funnel, {"train": args.rows, "valid": 1, "test": 1})
            rows += measure(name, directory, args.repeats)
    run = {
        "rows": args.rows,
        "batch_size": BATCH_SIZE,
        "repeats": args.repeats,
        "threads": 1,
        "load": round(os.getloadavg()[0], 1),
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "versions": " ".join(f"{package}=={version(package)}" for package in ("torch", "torchrec", "numpy")),
        "commit": subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True).strip(),
        "date": date.today().isoformat(),
    }
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *run])
        writer.writeheader()
        writer.writerows({**row, **run} for row in rows)
    for row in rows:
        print(f"{row['data']:28} {row['way']:32} {row['median']:12,.0f} samples/s {row['times_training']:7.1f} x")


if __name__ == "__main__":
    main()
