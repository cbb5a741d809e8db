"""What our training loop costs beside bare TorchRec: ``python -m benchmarks.scaling``.

TorchRec's own DLRM is trained on 1, 2 and 4 gloo processes by two stacks, with the same weights, batches, sharding and
optimizers:

- bare: `DLRMTrain`, planner, `DistributedModelParallel` and `TrainPipelineBase`, as a TorchRec user writes it;
- ours: `MultiTaskTrain`, `distribute` and the step of `TrainingLoop`.

Nothing is timed unless their losses agree. Both take turns in the same processes, a block of two steps each, so that
other work on the machine meets both; every pair of blocks gives a ratio. There are several runs, in new processes each,
because where a process's memory comes to lie favours one or the other for a whole run. About 20 minutes on two cores.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks import record
from benchmarks.stacks import Bare, Subject, dlrm, mean_loss, ours
from tests import processes
from torchrec_mtl.training.loop import TrainingLoop

NUM_ROWS, STEPS = 100_000, 2  # of a table; of a block
NUM_COMPARED = 3  # steps whose losses must agree; later, differences of rounding have grown in TAFE
TOLERANCE = 2e-6

Make = Callable[[int, int, int], Subject]  # of rows of a batch, rows of a table, seed


def compare_losses(bare: Bare, ours: TrainingLoop) -> float:
    """Returns the largest difference between the first steps' losses; raises a `RuntimeError` above `TOLERANCE`."""
    worst = 0.0
    for step in range(NUM_COMPARED):
        first, second = bare.mean_loss(), mean_loss(ours)
        worst = max(worst, abs(first - second))
        if not worst <= TOLERANCE:
            raise RuntimeError(f"the losses of step {step + 1} must agree to {TOLERANCE}: {first} and {second}")
    return worst


def _seconds(take_step: Callable[[], None], steps: int) -> tuple[float, float]:
    """Wall time and processor time of a step, all ranks together, over a block of steps."""
    dist.barrier()
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(steps):
        take_step()
    processor = time.process_time() - processor
    dist.barrier()
    wall = time.perf_counter() - wall
    dist.all_reduce(total := torch.tensor(processor, dtype=torch.float64))
    return wall / steps, total.item() / steps


def _on_every_rank(
    make: Make, batch_size: int, num_rows: int, pairs: int, steps: int, ours_first: bool, file: str
) -> None:
    """One run; the first rank writes its result to ``file``."""
    torch.manual_seed(0)
    subject = make(batch_size // dist.get_world_size(), num_rows, dist.get_rank())
    begin = {"bare": partial(Bare, subject), "ours": partial(ours, subject, batch_size)}
    stacks: dict[str, Any] = {stack: begin[stack]() for stack in sorted(begin, reverse=ours_first)}
    stacks["bare"].model.load_state_dict(stacks["ours"].model.state_dict())
    difference = compare_losses(**stacks)
    blocks = []
    for pair in range(pairs):
        order = ("bare", "ours") if pair % 2 else ("ours", "bare")
        blocks.append({stack: _seconds(stacks[stack].take_step, steps) for stack in order})
    if dist.get_rank() == 0:
        Path(file).write_text(json.dumps({"loss_difference": difference, "blocks": blocks}))


def run(
    make: Make, world_size: int, batch_size: int, num_rows: int, runs: int, pairs: int, steps: int
) -> list[dict[str, Any]]:
    """Runs ``pairs`` of blocks of ``steps`` in each of ``runs`` sets of new processes."""
    results = []
    for number in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            file = f"{folder}/run.json"
            processes.run(_on_every_rank, world_size, make, batch_size, num_rows, pairs, steps, number % 2 == 0, file)
            results.append(json.loads(Path(file).read_text()))
    return results


def overheads(runs: Sequence[dict[str, Any]]) -> Iterator[record.Row]:
    """Rows that say by how much ours is slower: a ratio for each pair of blocks, and each run's median.

    The true median lies between the lowest and the highest of six runs' medians with 97 %, whatever the distribution.
    """
    worst = max(run["loss_difference"] for run in runs)
    for at, clock in enumerate(("wall time", "processor time")):
        of_runs = [[100 * (pair["ours"][at] / pair["bare"][at] - 1) for pair in run["blocks"]] for run in runs]
        medians = sorted(round(statistics.median(of_run), 2) for of_run in of_runs)
        about = {"lowest_run": medians[0], "highest_run": medians[-1], "runs": len(runs), "loss_difference": worst}
        figure = {"figure": f"ours over bare TorchRec, {clock}"}
        yield {**figure, **about, **record.spread([ratio for of_run in of_runs for ratio in of_run], "%", 2)}
    added = [1000 * (pair["ours"][0] - pair["bare"][0]) for run in runs for pair in run["blocks"]]
    yield {"figure": "ours less bare TorchRec, wall time", **record.spread(added, "ms a step")}


def throughputs(runs: Sequence[dict[str, Any]], batch_size: int) -> Iterator[record.Row]:
    """A row for each stack."""
    for stack, name in (("bare", "bare TorchRec"), ("ours", "ours")):
        rates = [batch_size / pair[stack][0] for run in runs for pair in run["blocks"]]
        yield {"figure": name, **record.spread(rates, "rows/s", 0)}


def main() -> None:
    args = record.parse(
        "scaling_measured", __doc__, lambda parser: parser.add_argument("--processes", type=int, nargs="+")
    )
    batch_size, runs, pairs, processes = (256, 1, 2, [1]) if args.quick else (4096, 6, 12, [1, 2, 4])
    with record.Results(args.results) as results:
        for world_size in args.processes or processes:
            found = run(dlrm, world_size, batch_size, NUM_ROWS, runs, args.repeats or pairs, STEPS)
            about = {"processes": world_size, "batch_size": batch_size, "rows_a_table": NUM_ROWS}
            for row in (*throughputs(found, batch_size), *overheads(found)):
                results.add({**about, "steps_a_block": STEPS, **row})
                print(f"{world_size} processes: {row['figure']}: {row['median']} {row['unit']}", flush=True)


if __name__ == "__main__":
    main()
