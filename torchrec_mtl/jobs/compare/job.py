"""Compares systems under one protocol: models x seeds x data sets, one report.

Every model tries the candidates of the protocol with the first seed, and validation chooses one by
``training.early_stopping_metric``. Then it is trained with every seed, and only then is the test split read, once
in each run. Finished runs are not repeated: the same command resumes a comparison that was stopped.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from torchrec_mtl.data import SPLITS, load_schema
from torchrec_mtl.errors import InputError, check_at_least, not_one_of, redacted
from torchrec_mtl.files import make_folder
from torchrec_mtl.jobs.absent_classes import absent_classes
from torchrec_mtl.jobs.build import build_model
from torchrec_mtl.jobs.command_line import REDACT_HELP, Parser, named, named_metrics
from torchrec_mtl.jobs.compare.efficiency import measure_efficiency
from torchrec_mtl.jobs.compare.finished import FinishedRuns
from torchrec_mtl.jobs.compare.plan import Plan, config_of
from torchrec_mtl.jobs.compare.protocols import KNOWN, PROTOCOLS
from torchrec_mtl.jobs.compare.runs import Run, make, read_result
from torchrec_mtl.jobs.compare.table_models import TableModel, check_data
from torchrec_mtl.jobs.compare.workers import make_all
from torchrec_mtl.jobs.datasets import DATASETS, add_sample, check_sample, dataset_directory, find_dataset, open_split
from torchrec_mtl.jobs.environment import require_extra, worker_environment
from torchrec_mtl.jobs.folder_lock import folder_lock
from torchrec_mtl.jobs.known_tasks import check_buildable
from torchrec_mtl.jobs.run_config import RunConfig, describe_data
from torchrec_mtl.jobs.unknown_ids import unknown_ids
from torchrec_mtl.metrics import METRICS, find_metric
from torchrec_mtl.systems import System
from torchrec_mtl.training.evaluation import early_stopping_metric

STAGES = ("search", "final", "sweep", "efficiency", "report")


def parser() -> Parser:
    """The options; settings have the form path=value."""
    options = Parser(prog="torchrec-mtl compare", description=__doc__)
    options.add_argument("overrides", metavar="path=value", nargs="*", help="settings replaced in every run")
    options.add_argument("--protocol", default="complete_journey", help=f"one of {', '.join(PROTOCOLS)} (%(default)s)")
    options.add_argument(
        "--datasets",
        default="complete_journey_unread",
        help=f"data sets, by commas: {', '.join(DATASETS)}, declared tables as shop.py, package.module:DATA_SET, or "
        "prepared folders or their URIs (%(default)s)",
    )
    add_sample(options)
    options.add_argument("--raw", default="", help="folder of the raw files, for ali_ccp or taobao")
    options.add_argument(
        "--models", default="", help="models of the protocol, separated by commas (all), or package.module:SYSTEM"
    )
    options.add_argument("--seeds", type=int, default=5, help="number of seeds (%(default)s)")
    options.add_argument(
        "--workers", type=int, default=_default_workers(), help="number of runs at a time (%(default)s)"
    )
    options.add_argument("--stages", default=",".join(STAGES), help="stages to run, separated by commas (%(default)s)")
    options.add_argument(
        "--metrics",
        default="auc",
        help=f"metrics in the report, by commas: {', '.join(METRICS)} or package.module:METRIC (%(default)s)",
    )
    options.add_argument("--output", default="runs/compare", help="folder of the comparison (%(default)s)")
    options.add_argument(
        "--finished",
        default="",
        help="folder of a CSV file for each data set, with a line for each finished run: kept with your code, it lets "
        "the comparison go on anywhere (the output)",
    )
    options.add_argument(
        "--choices",
        default="",
        help="CSV file of finished runs of a comparison on other data, such as a sample, whose search decides here too",
    )
    options.add_argument("--redact", action="store_true", help=REDACT_HELP)
    return options


def _default_workers() -> int:
    """One per GPU; on a CPU one per core, as two processes with one thread do more work than one process with two."""
    return torch.cuda.device_count() or len(os.sched_getaffinity(0))


def check(args: argparse.Namespace) -> list[System | TableModel]:
    """The systems that are asked for, after all arguments are checked; no data is read. ``args.data`` becomes what
    each of ``args.datasets`` names.

    Raises:
        InputError: if an argument is out of its range or names nothing, whatever the data.
    """
    if args.protocol not in PROTOCOLS:
        raise InputError(not_one_of("protocol", args.protocol, PROTOCOLS))
    protocol, known = PROTOCOLS[args.protocol], {**METRICS, **named_metrics(args.metrics)}
    check_at_least(1, seeds=args.seeds, workers=args.workers)
    check_sample(args.sample)
    for stage in args.stages.split(","):
        if stage not in STAGES:
            raise InputError(not_one_of("stage", stage, STAGES))
    args.data = {dataset: find_dataset(dataset) for dataset in args.datasets.split(",")}
    of_protocol = {name: KNOWN[name] for name in protocol.systems}
    names = args.models.split(",") if args.models else list(of_protocol)
    what = f"model of protocol {args.protocol}:"
    systems = [named(what, name, of_protocol, (System, TableModel)) for name in names]
    for system in systems:
        for candidate in protocol.candidates(system):
            config = config_of(system, protocol, candidate, args.overrides, others=[each.name for each in systems])
            early_stopping_metric(config, known)
    return systems


def check_arguments(argv: Sequence[str]) -> None:
    """Raises `InputError` if a comparison cannot be made, whatever the rows; see `check_buildable`."""
    args = parser().parse(argv)
    systems = check(args)
    protocol = PROTOCOLS[args.protocol]
    for system in systems:  # candidates differ in settings, which `check` has checked
        first, others = protocol.candidates(system)[0], [each.name for each in systems]
        config = config_of(system, protocol, first, args.overrides, others=others)
        for dataset, found in args.data.items():
            if isinstance(config, RunConfig):
                check_buildable(config, dataset, found)


def plans(args: argparse.Namespace) -> list[Plan]:
    """A plan for each data set, checked before anything is trained."""
    systems, protocol, metrics = check(args), PROTOCOLS[args.protocol], named_metrics(args.metrics)
    known = {**METRICS, **metrics}
    made = []
    for dataset, found in args.data.items():
        folder = dataset_directory(dataset, found, args.sample, args.raw)
        schema = load_schema(folder)
        directory = Path(args.output) / schema.name
        for metric in metrics:
            find_metric(metric, known, "metrics", with_groups=schema.group is not None)
        seeds = range(args.seeds)
        plan = Plan(
            protocol,
            folder.resolve() if isinstance(folder, Path) else folder,
            directory,
            seeds,
            systems,
            args.overrides,
            list(metrics),
            known,
            searched_in=_searched_in(args, directory),
        )
        for system in systems:  # reports a wrong argument of the last before the first is trained
            for candidate in protocol.candidates(system):
                config = plan.config(system.name, candidate, seed=0)
                if isinstance(config, RunConfig):
                    build_model(config, schema, torch.device("meta"))
                else:
                    check_data(schema)
        splits = {split: open_split(folder, split, schema) for split in SPLITS}
        for sentence in absent_classes(splits, folder):
            print(f"warning: {sentence}", flush=True)
        for sentence in unknown_ids(splits):
            print(sentence, flush=True)
        made.append(replace(plan, data=describe_data(splits)))
    return made


def _searched_in(args: argparse.Namespace, directory: Path) -> FinishedRuns | None:
    if not args.choices:
        return None
    file = Path(args.choices)
    if not file.is_file():
        raise InputError(f"`choices` (={args.choices!r}) must be a CSV file of finished runs")
    return FinishedRuns(file, directory)


def _log_file(run: Run) -> Path:
    return run.directory.with_name(run.directory.name + ".log")


def make_missing(name: str, runs: Sequence[Run], num_workers: int, finished: FinishedRuns) -> list[str]:
    """Makes the runs that are not finished, and records those that are; returns a sentence for each that failed."""
    missing = [run for run in runs if read_result(run) is None]
    finished.add(runs)
    print(f"{name}: {len(runs)} runs, {len(runs) - len(missing)} are finished, {num_workers} at a time", flush=True)
    failures, began = [], time.perf_counter()
    for done, (run, error) in enumerate(make_all(missing, make, _log_file, num_workers), start=1):
        result = read_result(run) if error is None else None
        left = (time.perf_counter() - began) / done * (len(missing) - done) / 60
        if result is None:
            failures.append(f"{run} failed ({error}); its log is {_log_file(run)}")
            print(f"  {failures[-1]}", flush=True)
        else:
            finished.add([run])
            score = f"validation {run.chosen_by.title}, mean {result['valid_score']:.4f}, {result['seconds']:.0f} s"
            print(f"  {done}/{len(missing)} {run}: {score}; {left:.0f} min left", flush=True)
    return failures


def run(args: argparse.Namespace) -> list[str]:
    """Runs the whole job; returns a sentence for each failure."""
    require_extra("report", "tensorboard", "matplotlib")
    planned, output = plans(args), Path(args.output)
    if any(isinstance(system, TableModel) for plan in planned for system in plan.systems):
        require_extra("compare", "lightgbm", "sklearn")
    choices = [f"{plan.directory}: weights and candidates by validation {plan.chosen_by.title}" for plan in planned]
    make_folder(output, "output")
    with folder_lock(output, "output", "comparison"):
        print(*choices, sep="\n", flush=True)
        return run_plans(planned, args)


def run_plans(planned: Sequence[Plan], args: argparse.Namespace) -> list[str]:
    """Runs the stages of each plan; returns a sentence for each failure."""
    stages, failures = args.stages.split(","), []
    os.environ |= worker_environment(len(os.sched_getaffinity(0)), args.workers)
    for plan in planned:
        folder = Path(args.finished or args.output)
        finished = FinishedRuns(folder / f"{plan.directory.name}.csv", plan.directory)
        for stage in ("search", "final", "sweep"):
            if stage == "final" and "final" in stages:
                chosen = plan.chosen()
                undecided = [system.name for system in plan.systems if system.name not in chosen]
                failures += [f"{system} has no finished search, so it is not trained" for system in undecided]
            runs = getattr(plan, f"{stage}_runs")()
            if restored := finished.restore(runs):
                print(f"{stage}: {restored} finished runs are from {finished.file}", flush=True)
            if stage in stages:
                failures += make_missing(stage, runs, args.workers, finished)
        if "efficiency" in stages:
            measure_efficiency(plan)
        if "report" in stages:
            from torchrec_mtl.jobs.compare.output import write_report  # Matplotlib, of the extra "report"

            write_report(plan)
    return failures


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job; returns status 0, or 1 if a run failed.

    Raises:
        InputError: if the user made a mistake.
    """
    args = parser().parse(argv)
    with redacted(args.redact):
        failures = run(args)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0
