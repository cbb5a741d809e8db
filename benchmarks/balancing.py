"""Measures what balancing the tasks costs: ``python -m benchmarks.balancing``.

A training step (forward pass, backward pass, optimizer) of Shared-Bottom, MMoE and TAFE with each method, beside the
same step with the plain sum: 23 tables of 10,000 to 100,000 rows of 16 columns, batches of 1024, two and four tasks,
row-wise Adagrad fused with the backward pass, one thread, one process; processor time. Before anything is timed, every
method must report the loss of the plain sum. Twenty minutes.
"""

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from benchmarks import record
from benchmarks.training_step.case import Size
from torchrec_mtl.data import BatchLoader, MultiTaskBatch, Split
from torchrec_mtl.jobs.compare.efficiency import build_settled
from torchrec_mtl.jobs.run_config import RunConfig
from torchrec_mtl.training.balancing import BALANCINGS
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.process_group import process_group, set_seed

CPU, SUM = torch.device("cpu"), "sum"
SYSTEMS, TASKS, REPEATS = ("shared_bottom", "mmoe", "tafe"), (2, 4), 11
QUICK = Size(batch_size=64, num_fields=4, fewest_rows=100, most_rows=200)


def configured(config: RunConfig, balancing: str, num_tasks: int) -> RunConfig:
    """The run with a method; DWA's weights change within the measurement."""
    arguments = {"static": {"weights": [1.0] * num_tasks}, "dwa": {"interval": 2}}.get(balancing, {})
    return replace(config, training=replace(config.training, balancing=balancing, balancing_args=arguments))


def stepping(config: RunConfig, split: Split, batches: Iterator[MultiTaskBatch]) -> Callable[[], float]:
    """Returns what takes a step with the next batch, and returns its loss."""
    set_seed(config.training.seed)
    model, optimizer = distribute(build_settled(config, split, CPU), config.training, CPU)

    def step() -> float:
        optimizer.zero_grad()
        loss, _ = model(next(batches))
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def check(losses: dict[str, float]) -> None:
    """Stops unless every method reports the same loss of the first batch."""
    for name, loss in losses.items():
        if abs(loss - losses[SUM]) > 1e-5 * abs(losses[SUM]):
            sys.exit(f"error: {name} reports a loss of {loss}, not {losses[SUM]}, so nothing is timed")


def measure(system: str, size: Size, repeats: int) -> list[record.Row]:
    """Milliseconds of a step with each method."""
    split, config = size.split(), size.config(system)
    loader = BatchLoader(split, size.batch_size, shuffle=True, drop_last=True)
    batches = list(loader)
    steps = {
        name: stepping(configured(config, name, size.num_tasks), split, itertools.cycle(batches))
        for name in (SUM, *BALANCINGS)
    }
    check({name: step() for name, step in steps.items()})
    times = record.in_turns(steps, repeats, record.processor_seconds, warm_up=2)
    about = {"system": system, "tasks": size.num_tasks, "batch_size": size.batch_size}
    return [
        {
            **about,
            "balancing": name,
            "times_sum": round(record.ratio(times[name], times[SUM]), 2),
            **record.spread([1e3 * taken for taken in times[name]], "ms", 1),
        }
        for name in steps
    ]


def main() -> None:
    arguments = record.parse("balancing", __doc__)
    size = QUICK if arguments.quick else Size(batch_size=1024)
    repeats = arguments.repeats or (1 if arguments.quick else REPEATS)
    with record.Results(arguments.results) as results, process_group(CPU):
        for system, num_tasks in itertools.product(SYSTEMS, TASKS):
            results.add(*measure(system, replace(size, num_tasks=num_tasks), repeats))


if __name__ == "__main__":
    main()
