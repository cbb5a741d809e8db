"""Where our training step spends what bare TorchRec does not: ``python -m benchmarks.scaling.parts``.

`benchmarks.scaling.measure` compares whole steps, which on a busy machine differ by more than the loop costs. This
times the loop's own parts inside each step: the agreement of the ranks, waiting for the slowest one included, for which
bare TorchRec would wait a little later in the step; and all other Python around the pipeline and the model.
Rows go to ``benchmarks/results/scaling_parts.csv``. Three minutes on two cores.
"""

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch.distributed as dist

from benchmarks import record
from benchmarks.scaling.stacks import Ours
from benchmarks.scaling.subjects import dlrm
from tests import processes
from torchrec_mtl.training.step import Step

BATCH_SIZE, NUM_ROWS, WARM_UP, STEPS = 4096, 100_000, 5, 60


class Timed:
    """Seconds spent in functions, by a name for each, in the present step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def __call__(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[name] += time.perf_counter() - began

        return timed


def time_steps(batch_size: int, num_rows: int, steps: int, file: str) -> None:
    """On every rank; the first one writes its steps' parts, in ms, to ``file``."""
    subject = dlrm(batch_size // dist.get_world_size(), num_rows, dist.get_rank())
    timed, rows = Timed(), []
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(subject, batch_size, Path(folder))
        ours.model.forward = timed("model", ours.model.forward)  # type: ignore[method-assign]
        ours.training.pipeline.progress = timed("pipeline", ours.training.pipeline.progress)
        take_step = timed("step", ours.take_step)
        with (
            patch.object(Step, "__call__", timed("call", Step.__call__)),
            patch.object(dist, "all_reduce", timed("agreement", dist.all_reduce)),
        ):
            for _ in range(steps):
                timed.seconds.clear()
                take_step()
                rows.append({name: 1000 * seconds for name, seconds in timed.seconds.items()})
    if dist.get_rank() == 0:
        Path(file).write_text(json.dumps(rows[WARM_UP:]))


def summary(steps: list[dict[str, float]]) -> list[record.Row]:
    """Each part in ms, and both together in percent of the step without them."""
    agreement = [step.get("agreement", 0.0) for step in steps]
    around = [step["step"] - step["pipeline"] + step["call"] - step["model"] for step in steps]
    python = [a - b for a, b in zip(around, agreement, strict=True)]
    percent = [100 * own / (step["step"] - own) for own, step in zip(around, steps, strict=True)]
    return [
        {"part": "whole step", **record.spread([step["step"] for step in steps], "ms", 1)},
        {"part": "agreement of the ranks", **record.spread(agreement, "ms")},
        {"part": "own Python", **record.spread(python, "ms")},
        {"part": "both, of the step without them", **record.spread(percent, "%", 2)},
    ]


def main() -> None:
    args = record.parse("scaling_parts", __doc__)
    circumstances = record.begin()
    batch_size, steps = (256, 5) if args.quick else (BATCH_SIZE, args.repeats or STEPS)
    rows = []
    for world_size in (1,) if args.quick else (1, 2, 4):
        with tempfile.TemporaryDirectory() as folder:
            file = f"{folder}/steps.json"
            processes.run(time_steps, world_size, batch_size, NUM_ROWS, steps + WARM_UP, file)
            for row in summary(json.loads(Path(file).read_text())):
                rows.append({"processes": world_size, "batch_size": batch_size, **row})
                print(f"{world_size} processes: {row['part']}: {row['median']} {row['unit']}", flush=True)
    record.write(args.results, rows, circumstances)


if __name__ == "__main__":
    main()
