"""Compares systems under one protocol: models x seeds x data sets, one report.

Every model tries the protocol's candidates with the first seed and takes the one that is best on validation, by
``training.early_stopping_metric``; then it is trained with every seed, and only then, once a run, the test split is
read. Runs that are finished are not made again: the same command goes on where it was stopped.
"""

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from torchrec_mtl.data import Schema
from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.compare.efficiency import measure_efficiency
from torchrec_mtl.jobs.compare.plan import Plan
from torchrec_mtl.jobs.compare.protocols import PROTOCOLS
from torchrec_mtl.jobs.compare.report import write_report
from torchrec_mtl.jobs.compare.runs import Run, make, read_result
from torchrec_mtl.jobs.compare.workers import make_all
from torchrec_mtl.jobs.datasets import DATASETS, dataset_directory
from torchrec_mtl.jobs.environment import worker_environment
from torchrec_mtl.jobs.settings import apply_overrides
from torchrec_mtl.jobs.train import build_model
from torchrec_mtl.metrics import METRICS, Metric, find_metric
from torchrec_mtl.training.evaluation import early_stopping_metric

STAGES = ("search", "final", "sweep", "efficiency", "report")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; a wrong one prints the usage and exits with status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings replaced in every run: path=value")
    parser.add_argument("--protocol", default="complete_journey", help=f"one of {list(PROTOCOLS)} (%(default)s)")
    parser.add_argument(
        "--datasets",
        default="complete_journey",
        help=f"of {list(DATASETS)} or prepared folders, by commas (%(default)s)",
    )
    parser.add_argument("--sample", type=float, default=0.2, help="share of a named data set's rows (%(default)s)")
    parser.add_argument("--raw", default="", help="folder of the raw files, for ali_ccp")
    parser.add_argument("--models", default="", help="names, by commas (all of the protocol's)")
    parser.add_argument("--seeds", type=int, default=5, help="how many (%(default)s)")
    parser.add_argument("--workers", type=int, default=_default_workers(), help="runs at a time (%(default)s)")
    parser.add_argument("--stages", default=",".join(STAGES), help="which, by commas (%(default)s)")
    parser.add_argument(
        "--metrics", default="auc", help=f"what the report shows, by commas, of {', '.join(METRICS)} (%(default)s)"
    )
    parser.add_argument("--output", default="runs/compare", help="folder of the comparison (%(default)s)")
    return parser.parse_intermixed_args(argv)


def _default_workers() -> int:
    """One a GPU; on a CPU one a core, as two processes of one thread do more than one of two."""
    return torch.cuda.device_count() or len(os.sched_getaffinity(0))


def check(args: argparse.Namespace, known: Mapping[str, Metric] = METRICS) -> Sequence[str]:
    """The systems that are asked for; a wrong argument is told before any data is read.

    Raises:
        InputError: if an argument is out of its range or names nothing, whatever the data.
    """
    if args.protocol not in PROTOCOLS:
        raise InputError(f"`protocol` (={args.protocol!r}) must be one of {list(PROTOCOLS)}")
    protocol = PROTOCOLS[args.protocol]
    for option in ("seeds", "workers"):
        if getattr(args, option) < 1:
            raise InputError(f"`{option}` (={getattr(args, option)}) must be at least 1")
    for stage in args.stages.split(","):
        if stage not in STAGES:
            raise InputError(f"stage {stage!r} must be one of {list(STAGES)}")
    for metric in args.metrics.split(","):
        find_metric(metric, known, "metrics", with_groups=True)
    systems = args.models.split(",") if args.models else protocol.systems
    for system in systems:
        if system not in protocol.systems:
            raise InputError(f"model {system!r} must be one of protocol {args.protocol!r}: {list(protocol.systems)}")
        for candidate in protocol.search:
            config = apply_overrides(protocol.settings(system), [*candidate, *args.overrides])
            early_stopping_metric(config.training, known)
    return systems


def plans(args: argparse.Namespace, known: Mapping[str, Metric] = METRICS) -> list[Plan]:
    """One a data set, checked before anything is trained."""
    systems, protocol, metrics = check(args, known), PROTOCOLS[args.protocol], args.metrics.split(",")
    made = []
    for dataset in args.datasets.split(","):
        folder = dataset_directory(dataset, args.sample, args.raw)
        schema = Schema.load(folder)
        directory = Path(args.output) / schema.name
        for metric in metrics:
            find_metric(metric, known, "metrics", with_groups=schema.group is not None)
        seeds = range(args.seeds)
        plan = Plan(protocol, folder.resolve(), directory, seeds, systems, args.overrides, metrics, known)
        for system in systems:  # a wrong argument of the last is told before the first is trained
            for candidate in protocol.search:
                build_model(plan.config(system, candidate, seed=0), schema, torch.device("meta"))
        made.append(plan)
    return made


def _log_file(run: Run) -> Path:
    return run.directory.with_name(run.directory.name + ".log")


def make_missing(name: str, runs: Sequence[Run], num_workers: int) -> list[str]:
    """Makes the runs that are not finished; one sentence for each that failed."""
    missing = [run for run in runs if read_result(run) is None]
    print(f"{name}: {len(runs)} runs, {len(runs) - len(missing)} are there, {num_workers} at a time", flush=True)
    failures, began = [], time.perf_counter()
    for done, (run, error) in enumerate(make_all(missing, make, _log_file, num_workers), start=1):
        result = read_result(run) if error is None else None
        left = (time.perf_counter() - began) / done * (len(missing) - done) / 60
        if result is None:
            failures.append(f"{run} failed ({error}); its log is {_log_file(run)}")
            print(f"  {failures[-1]}", flush=True)
        else:
            told = f"validation {run.chosen_by.title}, mean {result['valid_score']:.4f}, {result['seconds']:.0f} s"
            print(f"  {done}/{len(missing)} {run}: {told}; {left:.0f} min left", flush=True)
    return failures


def run(args: argparse.Namespace, known: Mapping[str, Metric] = METRICS) -> list[str]:
    """The whole job; the sentences of what failed."""
    stages = args.stages.split(",")
    planned, failures = plans(args, known), []
    for plan in planned:
        print(f"{plan.directory}: weights and candidates by validation {plan.chosen_by.title}", flush=True)
    os.environ |= worker_environment(len(os.sched_getaffinity(0)), args.workers)
    for plan in planned:
        for stage in ("search", "final", "sweep"):
            if stage == "final" and "final" in stages:
                chosen = plan.chosen()
                undecided = [system for system in plan.systems if system not in chosen]
                failures += [f"{system} has no finished search, so it is not trained" for system in undecided]
            if stage in stages:
                failures += make_missing(stage, getattr(plan, f"{stage}_runs")(), args.workers)
        if "efficiency" in stages:
            measure_efficiency(plan)
        if "report" in stages:
            write_report(plan)
    return failures


def main(argv: Sequence[str] | None = None, known: Mapping[str, Metric] = METRICS) -> int:
    """Status 0; 1 if a run failed; 2 with one sentence for a user's mistake.

    Args:
        argv: the command line; this process's by default.
        known: what the runs measure, by name; a program of your own may add to `METRICS`.
    """
    args = parse(argv)
    try:
        failures = run(args, known)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0
