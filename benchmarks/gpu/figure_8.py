"""Steps of training beside Shared-Bottom's, TAFE's figure 8: our loop with its pipeline.

23 tables of 10,000 rows and dimension 16 with fused row-wise Adagrad, a funnel of three steps, the models with their
papers' sizes. A row has the milliseconds of a step, from batches in the host's memory on: the median over rounds of
`STEPS` steps, between which the device is waited for. TAFE's smooth step is as a training leaves it.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import torch

from benchmarks import record
from benchmarks.record import Row, in_one_line
from benchmarks.stacks import Subject, library, our_loop
from torchrec_mtl.modules import DynamicSelector
from torchrec_mtl.training.config import TableConfig, TrainingConfig
from torchrec_mtl.training.loop import TrainingLoop
from torchrec_mtl.training.process_group import process_group

SYSTEMS = {  # candidate: its system, and the backend of its attention
    "Shared-Bottom": ("shared_bottom", "auto"),
    "TAFE": ("tafe", "auto"),
    "TAFE, triton": ("tafe", "triton"),
    "PLE": ("ple", "auto"),
}
BATCH_SIZES, NUM_ROWS, STEPS, ROUNDS = (1024, 16384), 10_000, 20, 7
PAPER = {"TAFE": 1177 / 295, "PLE": 1195 / 295}  # seconds of an epoch on Ali-CCP, at a batch of 1,024


def subject(system: str, batch_size: int, num_rows: int, small: bool = False) -> Subject:
    """The model with its loss and batches."""
    made = library(system, batch_size, num_rows, seed=0, small=small)
    for module in made.ours.modules():
        if isinstance(module, DynamicSelector):
            module.step.fill_(10**9)
    return made


def begin(system: str, batch_size: int, num_rows: int, device: torch.device) -> TrainingLoop:
    """A run of the system; the process group must stand."""
    made = subject(system, batch_size, num_rows, small=device.type == "cpu")
    batches = [batch.pin_memory() for batch in made.batches] if device.type == "cuda" else made.batches
    config = TrainingConfig(batch_size=batch_size, table=TableConfig(sharding="table_wise"))
    return our_loop(made.ours, batches, made.tasks, config, device)


def take(run: TrainingLoop, backend: str, steps: int) -> None:
    """Takes steps, and waits until the device has done them."""
    with patch.dict(os.environ, {} if backend == "auto" else {"TORCHREC_MTL_INDUCING_ATTENTION": backend}):
        for _ in range(steps):
            run.take_step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(add: Callable[[Row], None], pretend: bool) -> None:
    """A row for each batch size and candidate; a candidate that fails has one with its ``error``."""
    device = torch.device("cpu") if pretend else torch.device("cuda", 0)
    sizes, num_rows, steps, rounds = ((2,), 50, 1, 1) if pretend else (BATCH_SIZES, NUM_ROWS, STEPS, ROUNDS)
    with process_group(device):
        for batch_size in sizes:
            base: list[float] = []
            for name, (system, backend) in SYSTEMS.items():
                about = {"what": "training", "candidate": name, "B": batch_size, "steps": steps}
                try:
                    began, run = time.perf_counter(), begin(system, batch_size, num_rows, device)
                    take(run, backend, 1)
                    about["first_seconds"] = round(time.perf_counter() - began, 2)
                    turn = {name: partial(take, run, backend, steps)}
                    times = record.in_turns(turn, rounds, warm_up=0 if pretend else 1)[name]
                    run.close()
                except Exception as error:
                    add({**about, "error": in_one_line(error)})
                    continue
                base = base or times
                about["to_shared_bottom"] = round(record.ratio(times, base), 3)
                about["paper_ratio"] = round(PAPER[name], 2) if name in PAPER else None
                milliseconds = record.spread([1e3 * x / steps for x in times], "ms")
                add({**about, "samples_per_second": round(1e3 * batch_size / milliseconds["median"]), **milliseconds})
