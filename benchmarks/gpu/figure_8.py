"""Steps of training and inference beside Shared-Bottom's, TAFE's figure 8: our loop with its pipeline, and evaluation.

23 tables of 10,000 rows and dimension 16 with fused row-wise Adagrad, a funnel of three steps, the models with their
papers' sizes. A row has the milliseconds of a step, from batches in the host's memory on: the median over rounds of
`STEPS` steps, between which the device is waited for. TAFE's smooth step is as a training leaves it.
"""

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, islice
from unittest.mock import patch

import torch

from benchmarks import record
from benchmarks.record import Row, in_one_line
from benchmarks.stacks import Subject, library, our_loop
from torchrec_mtl.data import MultiTaskBatch
from torchrec_mtl.modules import DynamicSelector
from torchrec_mtl.training.config import TableConfig, TrainingConfig
from torchrec_mtl.training.loop import TrainingLoop
from torchrec_mtl.training.pipeline import detach
from torchrec_mtl.training.process_group import process_group

SYSTEMS = {  # candidate: its system, and the backend of its attention
    "Shared-Bottom": ("shared_bottom", "auto"),
    "TAFE": ("tafe", "auto"),
    "TAFE, sdpa": ("tafe", "sdpa"),
    "TAFE, triton": ("tafe", "triton"),
    "PLE": ("ple", "auto"),
}
BATCH_SIZES, NUM_ROWS, STEPS, ROUNDS = (1024, 16384), 10_000, 20, 7
PAPER = {  # seconds on Ali-CCP at a batch of 1,024, as ratios: of an epoch, and of the test set
    ("training", "TAFE"): 1177 / 295,
    ("training", "PLE"): 1195 / 295,
    ("inference", "TAFE"): 47 / 35,
}


def subject(system: str, batch_size: int, num_rows: int, small: bool = False) -> Subject:
    """The model with its loss and batches."""
    made = library(system, batch_size, num_rows, seed=0, small=small)
    for module in made.ours.modules():
        if isinstance(module, DynamicSelector):
            module.step.fill_(10**9)
    return made


def begin(
    system: str, batch_size: int, num_rows: int, device: torch.device
) -> tuple[TrainingLoop, list[MultiTaskBatch]]:
    """A run of the system, and its batches; the process group must stand."""
    made = subject(system, batch_size, num_rows, small=device.type == "cpu")
    batches = [batch.pin_memory() for batch in made.batches] if device.type == "cuda" else made.batches
    config = TrainingConfig(batch_size=batch_size, table=TableConfig(sharding="table_wise"))
    return our_loop(made.ours, batches, made.tasks, config, device), batches


def _train(run: TrainingLoop, batches: list[MultiTaskBatch], steps: int) -> None:
    for _ in range(steps):
        run.take_step()


def _score(run: TrainingLoop, batches: list[MultiTaskBatch], steps: int) -> None:
    run.model.eval()
    with torch.no_grad():
        for batch in islice(cycle(batches), steps):
            run.model(batch.to(run.device, non_blocking=True))


PARTS = {"training": _train, "inference": _score}  # in this order: the pipeline gives the model back after the first


def take(part: str, run: TrainingLoop, batches: list[MultiTaskBatch], backend: str, steps: int) -> None:
    """Takes steps, and waits until the device has done them."""
    with patch.dict(os.environ, {} if backend == "auto" else {"TORCHREC_MTL_INDUCING_ATTENTION": backend}):
        PARTS[part](run, batches, steps)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def rows(
    candidate: str, batch_size: int, device: torch.device, num_rows: int, steps: int, rounds: int
) -> Iterator[Row]:
    """A row for training and one for inference, with the median's milliseconds."""
    system, backend = SYSTEMS[candidate]
    run, batches = begin(system, batch_size, num_rows, device)
    for part in PARTS:
        began = time.perf_counter()
        take(part, run, batches, backend, 1)
        about: Row = {"part": part, "first_seconds": round(time.perf_counter() - began, 2)}
        turn = {candidate: partial(take, part, run, batches, backend, steps)}
        times = record.in_turns(turn, rounds, warm_up=0 if device.type == "cpu" else 1)[candidate]
        milliseconds = record.spread([1e3 * x / steps for x in times], "ms")
        yield {**about, "samples_per_second": round(1e3 * batch_size / milliseconds["median"]), **milliseconds}
        detach(run.pipeline)
    run.close()


def measure(add: Callable[[Row], None], pretend: bool) -> None:
    """Rows for each batch size and candidate; a candidate that fails has one with its ``error``."""
    device = torch.device("cpu") if pretend else torch.device("cuda", 0)
    sizes, num_rows, steps, rounds = ((2,), 50, 1, 1) if pretend else (BATCH_SIZES, NUM_ROWS, STEPS, ROUNDS)
    with process_group(device):
        for batch_size in sizes:
            base = dict[str, float]()
            for name in SYSTEMS:
                about = {"what": "training", "candidate": name, "B": batch_size, "steps": steps}
                try:
                    for row in rows(name, batch_size, device, num_rows, steps, rounds):
                        part, median = row["part"], row["median"]
                        paper = PAPER.get((part, name))
                        row["to_shared_bottom"] = round(median / base.setdefault(part, median), 3)
                        row["paper_ratio"] = None if paper is None else round(paper, 2)
                        add({**about, **row})
                except Exception as error:
                    add({**about, "error": in_one_line(error)})
