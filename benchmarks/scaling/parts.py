"""Where our training step spends what bare TorchRec does not: ``python -m benchmarks.scaling.parts``.

`benchmarks.scaling.measure` compares whole steps, which on a busy machine differ by more than the loop costs. This
times the loop's own parts inside each step: the agreement of the ranks, waiting for the slowest one included, for which
bare TorchRec would wait a little later in the step; and all other Python around the pipeline and the model.
Rows go to ``benchmarks/results/scaling_parts.csv``. Three minutes on two cores.
"""

import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch.distributed as dist

from benchmarks.scaling.measure import circumstances, quantiles, write_rows
from benchmarks.scaling.stacks import Ours, make_batches
from tests import processes
from torchrec_mtl.jobs.environment import KEEP_FREED_MEMORY
from torchrec_mtl.training.step import Step

RESULTS = Path(__file__).parents[1] / "results" / "scaling_parts.csv"
BATCH_SIZE, NUM_EMBEDDINGS, WARM_UP, STEPS = 4096, 100_000, 5, 60


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


def time_steps(batch_size: int, num_embeddings: int, steps: int, file: str) -> None:
    """On every rank; the first one writes its steps' parts, in ms, to ``file``."""
    batches = make_batches(batch_size // dist.get_world_size(), num_embeddings, dist.get_rank())
    timed, rows = Timed(), []
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(batches, num_embeddings, batch_size, Path(folder))
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


def summary(steps: list[dict[str, float]]) -> dict[str, float]:
    """Medians, p20 and p80 over the steps: each part in ms, and both together in percent of the step without them."""
    agreement = [step.get("agreement", 0.0) for step in steps]
    around = [step["step"] - step["pipeline"] + step["call"] - step["model"] for step in steps]
    python = [a - b for a, b in zip(around, agreement, strict=True)]
    percent = [100 * own / (step["step"] - own) for own, step in zip(around, steps, strict=True)]
    row = quantiles([step["step"] for step in steps], "step_ms", 1)
    row |= quantiles(agreement, "agreement_ms", 3) | quantiles(python, "python_ms", 3)
    return row | quantiles(percent, "percent", 2)


def main() -> None:
    os.environ.update(OMP_NUM_THREADS="1", **KEEP_FREED_MEMORY)
    rows = []
    for world_size in (1, 2, 4):
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as folder:
            file = f"{folder}/steps.json"
            processes.run(time_steps, world_size, BATCH_SIZE, NUM_EMBEDDINGS, STEPS + WARM_UP, file)
            row = summary(json.loads(Path(file).read_text()))
        rows.append({"processes": world_size, "batch_size": BATCH_SIZE, **row, "steps": STEPS, **circumstances(load)})
        print({name: rows[-1][name] for name in ("processes", "step_ms", "agreement_ms", "python_ms", "percent")})
    write_rows(RESULTS, rows)


if __name__ == "__main__":
    main()
