"""What our training loop costs beside bare TorchRec: ``python -m benchmarks.scaling.measure``.

TorchRec's own DLRM is trained on 1, 2 and 4 gloo processes by two stacks, with the same weights, batches, sharding and
optimizers:

- bare: `DLRMTrain`, planner, `DistributedModelParallel` and `TrainPipelineBase`, as a TorchRec user writes it;
- ours: `MultiTaskTrain`, `distribute` and the step of `fit`'s loop.

Their losses must agree first, or nothing is reported. Then both take turns in the same processes, a short block of
steps each, so that other work on the machine meets both; every pair of blocks gives one ratio. All of this is done in
several runs, with new processes, because where memory comes to lie favours the one or the other for a whole run. Rows
go to ``benchmarks/results/scaling_measured.csv``. About 20 minutes on two cores.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks import record
from benchmarks.scaling.stacks import Bare, Ours, Stack
from benchmarks.scaling.subjects import SUBJECTS
from tests import processes

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


def measure(name: str, batch_size: int, num_rows: int, pairs: int, steps: int, ours_first: bool, file: str) -> None:
    """A run, on every rank; the first one writes what came of it to ``file``."""
    with tempfile.TemporaryDirectory() as folder:
        subject = SUBJECTS[name](batch_size // dist.get_world_size(), num_rows, dist.get_rank())
        make: dict[str, Callable[[], Stack]] = {
            "bare": lambda: Bare(subject),
            "ours": lambda: Ours(subject, batch_size, Path(folder)),
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


def run(
    name: str, world_size: int, batch_size: int, num_rows: int, runs: int, pairs: int, steps: int
) -> list[dict[str, Any]]:
    """What came of ``runs`` runs, each in new processes."""
    results = []
    for number in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            file = f"{folder}/run.json"
            processes.run(measure, world_size, name, batch_size, num_rows, pairs, steps, number % 2 == 0, file)
            results.append(json.loads(Path(file).read_text()))
    return results


def overheads(runs: Sequence[dict[str, Any]]) -> Iterator[record.Row]:
    """Rows of by how much ours is slower, by wall time and by processor time: a ratio for each pair of blocks.

    ``lowest_run`` and ``highest_run`` are the least and greatest of the runs' medians. Between those of six runs the
    true median is with 97 %, whatever the distribution.
    """
    worst = max(run["loss_difference"] for run in runs)
    for at, clock in enumerate(("wall time", "processor time")):
        of_runs = [[100 * (pair["ours"][at] / pair["bare"][at] - 1) for pair in run["blocks"]] for run in runs]
        medians = [statistics.median(run) for run in of_runs]
        yield {
            "figure": f"ours over bare TorchRec, {clock}",
            "lowest_run": round(min(medians), 2),
            "highest_run": round(max(medians), 2),
            "runs": len(runs),
            "loss_difference": worst,
            **record.spread([overhead for run in of_runs for overhead in run], "%", 2),
        }
    added = [1000 * (pair["ours"][0] - pair["bare"][0]) for run in runs for pair in run["blocks"]]
    yield {"figure": "ours less bare TorchRec, wall time", **record.spread(added, "ms a step")}


def throughputs(runs: Sequence[dict[str, Any]], batch_size: int) -> Iterator[record.Row]:
    """Rows of both stacks' own."""
    for stack, name in (("bare", "bare TorchRec"), ("ours", "ours")):
        rates = [batch_size / pair[stack][0] for run in runs for pair in run["blocks"]]
        yield {"figure": name, **record.spread(rates, "rows/s", 0)}


def told(rows: Sequence[record.Row]) -> str:
    """A line a figure."""
    lines = []
    for row in rows:
        of_runs = f" (runs {row['lowest_run']} to {row['highest_run']})" if "lowest_run" in row else ""
        lines.append(f"  {row['figure']}: {row['median']} {row['unit']}{of_runs}")
    return "\n".join(lines)


def options(parser: argparse.ArgumentParser) -> None:
    """The program's own."""
    parser.add_argument("--processes", type=int, nargs="+", default=None, help="1 2 4 by default")
    parser.add_argument("--batch-size", type=int, default=None, help="rows a step, over all processes; 4096")
    parser.add_argument("--rows", type=int, default=100_000, help="of each table")
    parser.add_argument("--runs", type=int, default=None, help="each in new processes; 6")
    parser.add_argument("--steps", type=int, default=2, help="steps a block")


def main() -> None:
    args = record.parse("scaling_measured", __doc__, options)
    circumstances = record.begin()
    batch_size = args.batch_size or (256 if args.quick else 4096)
    runs, pairs = args.runs or (1 if args.quick else 6), args.repeats or (2 if args.quick else 12)
    rows = []
    for world_size in args.processes or ([1] if args.quick else [1, 2, 4]):
        results = run("dlrm", world_size, batch_size, args.rows, runs, pairs, args.steps)
        about = {"processes": world_size, "batch_size": batch_size, "rows_a_table": args.rows}
        about["steps_a_block"] = args.steps
        of_size = [{**about, **row} for row in (*throughputs(results, batch_size), *overheads(results))]
        print(f"{world_size} processes, batch {batch_size}\n{told(of_size)}", flush=True)
        rows += of_size
    record.write(args.results, rows, circumstances)


if __name__ == "__main__":
    main()
