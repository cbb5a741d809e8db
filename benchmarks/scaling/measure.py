"""What our training loop costs beside bare TorchRec: ``python -m benchmarks.scaling.measure``.

TorchRec's own DLRM is trained on 1, 2 and 4 gloo processes by two stacks, with the same weights, batches, sharding and
optimizers:

- bare: `DLRMTrain`, planner, `DistributedModelParallel` and `TrainPipelineBase`, as a TorchRec user writes it;
- ours: `MultiTaskTrain`, `distribute` and the step of `fit`'s loop.

Their losses must agree first, or nothing is reported. Then both take turns in the same processes, a short block of
steps each, so that other work on the machine meets both; every pair of blocks gives one ratio. All of this is done in
several runs, with new processes, because where memory comes to lie favours the one or the other for a whole run. A row
for each number of processes goes to ``benchmarks/results/scaling_measured.csv``. About 20 minutes on two cores.
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
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torchrec

from benchmarks.scaling.stacks import NUM_TABLES, Bare, Ours, Stack, make_batches
from tests import processes
from torchrec_mtl.jobs.environment import KEEP_FREED_MEMORY

RESULTS = Path(__file__).parents[1] / "results" / "scaling_measured.csv"
ROOT = Path(__file__).parents[2]
NUM_COMPARED = 8  # steps whose losses must agree
TOLERANCE = 2e-6


def compare_losses(bare: Stack, ours: Stack) -> float:
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


def measure(batch_size: int, num_embeddings: int, pairs: int, steps: int, ours_first: bool, file: str) -> None:
    """A run, on every rank; the first one writes what came of it to ``file``."""
    batches = make_batches(batch_size // dist.get_world_size(), num_embeddings, seed=dist.get_rank())
    with tempfile.TemporaryDirectory() as folder:
        make: dict[str, Callable[[], Stack]] = {
            "bare": lambda: Bare(batches, num_embeddings),
            "ours": lambda: Ours(batches, num_embeddings, batch_size, Path(folder)),
        }
        stacks = {name: make[name]() for name in sorted(make, reverse=ours_first)}
        stacks["bare"].model.load_state_dict(stacks["ours"].model.state_dict())
        difference = compare_losses(stacks["bare"], stacks["ours"])
        blocks = []
        for pair in range(pairs):
            of_pair = {}
            for name in ("bare", "ours") if pair % 2 else ("ours", "bare"):
                wall, processor = seconds(stacks[name].take_step, steps)
                total = torch.tensor(processor, dtype=torch.float64)
                dist.all_reduce(total)
                of_pair[name] = (wall / steps, total.item() / steps)
            blocks.append(of_pair)
    if dist.get_rank() == 0:
        Path(file).write_text(json.dumps({"loss_difference": difference, "blocks": blocks}))


def quantiles(values: list[float], name: str, digits: int) -> dict[str, float]:
    """Median, p20 and p80."""
    p20, *_, p80 = statistics.quantiles(values, n=5, method="inclusive")
    named = {"": statistics.median(values), "_p20": p20, "_p80": p80}
    return {f"{name}{suffix}": round(value, digits) for suffix, value in named.items()}


def summary(runs: list[dict[str, Any]], batch_size: int) -> dict[str, float]:
    """Of one number of processes: throughputs, and by how much ours is slower, a ratio for each pair of blocks.

    ``low`` and ``high`` are the least and greatest of the runs' medians. Between those of six runs the true median is
    with 97 %, whatever the distribution.
    """
    blocks = [run["blocks"] for run in runs]
    row: dict[str, float] = {}
    for stack in ("bare", "ours"):
        rates = [batch_size / pair[stack][0] for run in blocks for pair in run]
        row |= quantiles(rates, f"{stack}_samples_per_second", 0)
    for at, clock in enumerate(("overhead_percent", "processor_overhead_percent")):
        of_runs = [[100 * (pair["ours"][at] / pair["bare"][at] - 1) for pair in run] for run in blocks]
        medians = [statistics.median(run) for run in of_runs]
        row |= quantiles([overhead for run in of_runs for overhead in run], clock, 2)
        row |= {f"{clock}_low": round(min(medians), 2), f"{clock}_high": round(max(medians), 2)}
    added = [1000 * (pair["ours"][0] - pair["bare"][0]) for run in blocks for pair in run]
    row |= quantiles(added, "added_ms_a_step", 3)
    return {**row, "loss_difference": max(run["loss_difference"] for run in runs)}


def processor_name() -> str:
    """As Linux says it."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.machine()


def circumstances(load: float) -> dict[str, Any]:
    """Under which something was measured."""
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True).strip()
    return {
        "load": round(load, 1),
        "cores": os.cpu_count(),
        "threads": 1,
        "processor": processor_name(),
        "versions": f"torch=={torch.__version__} torchrec=={torchrec.__version__}",
        "date": date.today().isoformat(),
        "commit": commit,
    }


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    """As CSV."""
    file.parent.mkdir(exist_ok=True)
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, rows[0])
        writer.writeheader()
        writer.writerows(rows)


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
    parser.add_argument("--batch-size", type=int, default=4096, help="rows a step, over all processes")
    parser.add_argument("--rows", type=int, default=100_000, help=f"of each of the {NUM_TABLES} tables")
    parser.add_argument("--runs", type=int, default=6, help="each in new processes")
    parser.add_argument("--pairs", type=int, default=12, help="pairs of blocks a run")
    parser.add_argument("--steps", type=int, default=2, help="steps a block")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", **KEEP_FREED_MEMORY)
    rows = []
    for world_size in args.processes:
        load = os.getloadavg()[0]
        runs = []
        for run in range(args.runs):
            with tempfile.TemporaryDirectory() as folder:
                file = f"{folder}/run.json"
                arguments = (args.batch_size, args.rows, args.pairs, args.steps, run % 2 == 0, file)
                processes.run(measure, world_size, *arguments)
                runs.append(json.loads(Path(file).read_text()))
        row = {
            "processes": world_size,
            "batch_size": args.batch_size,
            "num_embeddings": args.rows,
            **summary(runs, args.batch_size),
            "runs": args.runs,
            "pairs_a_run": args.pairs,
            "steps_a_block": args.steps,
            **circumstances(load),
        }
        rows.append(row)
        print(told(row), flush=True)
    write_rows(args.results, rows)


if __name__ == "__main__":
    main()
