"""What our training loop costs beside bare TorchRec: ``python -m benchmarks.scaling.measure``.

TorchRec's own DLRM is trained on 1, 2 and 4 gloo processes by two stacks, with the same weights, batches, sharding and
optimizers:

- bare: `DLRMTrain`, planner, `DistributedModelParallel` and `TrainPipelineBase`, as a TorchRec user writes it;
- ours: `MultiTaskTrain`, `distribute` and the step of `fit`'s loop.

Their losses must agree first, or nothing is reported. Then both take turns in the same processes, a short block of
steps each, so that other work on the machine meets both; every pair of blocks gives one ratio. A small batch shows
what the loop adds to any step, in milliseconds. A row for each number of processes and batch size goes to
``benchmarks/results/scaling_measured.csv``. About 15 minutes on two cores.
"""

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.scaling.stacks import NUM_TABLES, Bare, Ours, make_batches
from tests import processes
from torchrec_mtl.jobs.environment import KEEP_FREED_MEMORY

RESULTS = Path(__file__).parents[1] / "results" / "scaling_measured.csv"
ROOT = Path(__file__).parents[2]
NUM_COMPARED = 8  # steps whose losses must agree
TOLERANCE = 2e-6


def compare_losses(bare: Bare, ours: Ours) -> float:
    """The largest difference of the losses of all ranks' rows over the first steps, after which timing may begin."""
    worst = 0.0
    for step in range(NUM_COMPARED):
        first, second = bare.loss(), ours.loss()
        worst = max(worst, abs(first - second))
        if not worst <= TOLERANCE:
            raise RuntimeError(f"the losses of step {step + 1} must agree to {TOLERANCE}: {first} and {second}")
    return worst


def seconds(take_step: Callable[[], None], steps: int) -> tuple[float, float]:
    """Wall time of a block on all ranks, and processor time of this rank alone."""
    dist.barrier()
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(steps):
        take_step()
    processor = time.process_time() - processor
    dist.barrier()
    return time.perf_counter() - wall, processor


def measure(batch_size: int, num_embeddings: int, pairs: int, steps: int, file: str) -> None:
    """On every rank; the first one writes what came of it to ``file``."""
    batches = make_batches(batch_size // dist.get_world_size(), num_embeddings, seed=dist.get_rank())
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(batches, batch_size, num_embeddings, Path(folder))
        bare = Bare(batches, num_embeddings, weights=ours.model.state_dict())
        difference = compare_losses(bare, ours)
        blocks = []
        for pair in range(pairs):
            of_pair = {}
            for stack in (bare, ours) if pair % 2 else (ours, bare):
                wall, processor = seconds(stack.take_step, steps)
                totals = torch.tensor(processor, dtype=torch.float64)
                dist.all_reduce(totals)
                of_pair[stack.name] = (wall / steps, totals.item() / steps)
            blocks.append(of_pair)
    if dist.get_rank() == 0:
        Path(file).write_text(json.dumps({"loss_difference": difference, "blocks": blocks}))


def quantiles(values: list[float], name: str, digits: int) -> dict[str, float]:
    """Median, p20 and p80."""
    p20, *_, p80 = statistics.quantiles(values, n=5, method="inclusive")
    named = {"": statistics.median(values), "_p20": p20, "_p80": p80}
    return {f"{name}{suffix}": round(value, digits) for suffix, value in named.items()}


def median_interval(values: list[float]) -> tuple[float, float]:
    """Holds the true median with about 95 %, whatever the distribution: order statistics around the middle."""
    ordered, n = sorted(values), len(values)
    below = max(0, int(n / 2 - 0.98 * n**0.5))
    return ordered[below], ordered[n - 1 - below]


def summary(measured: dict[str, Any], batch_size: int) -> dict[str, float]:
    """Of one number of processes: throughputs, and by how much ours is slower, a ratio for each pair of blocks."""
    blocks = measured["blocks"]
    row: dict[str, float] = {}
    for stack in ("bare", "ours"):
        row |= quantiles([batch_size / block[stack][0] for block in blocks], f"{stack}_samples_per_second", 0)
    for at, clock in enumerate(("overhead_percent", "processor_overhead_percent")):
        overheads = [100 * (block["ours"][at] / block["bare"][at] - 1) for block in blocks]
        low, high = median_interval(overheads)
        row |= {**quantiles(overheads, clock, 2), f"{clock}_low": round(low, 2), f"{clock}_high": round(high, 2)}
    added = [1000 * (block["ours"][0] - block["bare"][0]) for block in blocks]
    return {**row, **quantiles(added, "added_ms_a_step", 3), "loss_difference": measured["loss_difference"]}


def processor_name() -> str:
    """As Linux says it."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.machine()


def told(row: dict[str, Any]) -> str:
    """A line of the summary."""
    return (
        f"{row['processes']} processes, batch {row['batch_size']}: "
        f"bare {row['bare_samples_per_second']:.0f}, ours {row['ours_samples_per_second']:.0f} samples/s; "
        f"overhead {row['overhead_percent']:+.1f} % "
        f"({row['overhead_percent_low']:+.1f} to {row['overhead_percent_high']:+.1f}), "
        f"{row['added_ms_a_step']:+.2f} ms a step, "
        f"of processor time {row['processor_overhead_percent']:+.1f} % "
        f"({row['processor_overhead_percent_low']:+.1f} to {row['processor_overhead_percent_high']:+.1f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--batch-size", type=int, nargs="+", default=[4096, 64], help="rows a step, over all processes")
    parser.add_argument("--rows", type=int, default=100_000, help=f"of each of the {NUM_TABLES} tables")
    parser.add_argument("--pairs", type=int, default=40, help="pairs of blocks")
    parser.add_argument("--steps", type=int, default=3, help="steps a block")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", **KEEP_FREED_MEMORY)
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True).strip()
    rows = []
    for world_size, batch_size in product(args.processes, args.batch_size):
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as folder:
            file = f"{folder}/measured.json"
            processes.run(measure, world_size, batch_size, args.rows, args.pairs, args.steps, file)
            measured = json.loads(Path(file).read_text())
        row = {
            "processes": world_size,
            "batch_size": batch_size,
            "num_embeddings": args.rows,
            **summary(measured, batch_size),
            "pairs": args.pairs,
            "steps_a_block": args.steps,
            "load": round(load, 1),
            "cores": os.cpu_count(),
            "threads": 1,
            "processor": processor_name(),
            "versions": f"torch=={torch.__version__}",
            "date": date.today().isoformat(),
            "commit": commit,
        }
        rows.append(row)
        print(told(row), flush=True)
    args.results.parent.mkdir(exist_ok=True)
    with args.results.open("w", newline="") as out:
        writer = csv.DictWriter(out, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
