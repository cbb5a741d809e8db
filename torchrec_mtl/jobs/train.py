"""The training job: trains models on a prepared funnel, one after the other, and reports them side by side."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from torchrec_mtl.data import Schema, Split, StreamedSplit, load_schema, read_split, stream_split
from torchrec_mtl.data.schema import SCHEMA_FILE
from torchrec_mtl.data.table import Table
from torchrec_mtl.errors import InputError, redacted
from torchrec_mtl.files import make_folder, to_json
from torchrec_mtl.jobs.absent_classes import absent_classes
from torchrec_mtl.jobs.build import build_model
from torchrec_mtl.jobs.command_line import named_metrics
from torchrec_mtl.jobs.daily.bounds import Bounds
from torchrec_mtl.jobs.daily.folder import parse_days
from torchrec_mtl.jobs.daily.job import DailyRun
from torchrec_mtl.jobs.datasets import dataset_directory, is_streamed, table_directory
from torchrec_mtl.jobs.declarations import find_table
from torchrec_mtl.jobs.environment import require_extra
from torchrec_mtl.jobs.folder_lock import folder_lock
from torchrec_mtl.jobs.loading import record_data
from torchrec_mtl.jobs.next_steps import next_steps
from torchrec_mtl.jobs.results import read_report, save_report, write_report
from torchrec_mtl.jobs.run_config import RunConfig, describe_data
from torchrec_mtl.jobs.run_folder import is_finished, open_run
from torchrec_mtl.jobs.settings import describe
from torchrec_mtl.jobs.single_run import train_model
from torchrec_mtl.jobs.train_arguments import check_batch_size, check_known, configure, named_trackers, parser
from torchrec_mtl.jobs.unknown_ids import unknown_ids
from torchrec_mtl.metrics import METRICS, Metric, find_metric
from torchrec_mtl.training.faults import Stopped, StopRequest
from torchrec_mtl.training.hang import longest_wait, watched
from torchrec_mtl.training.plan_report import describe_plan
from torchrec_mtl.training.process_group import default_device, on_every_rank, on_first_rank, process_group
from torchrec_mtl.training.sharding import plan_sharding
from torchrec_mtl.training.trackers import MLflow, TensorBoard


def run_directory(args: argparse.Namespace) -> Path:
    """The folder of the run.

    Raises:
        InputError: if the run has no name but torchrun may restart it, which would give it a new name.
    """
    if not args.name and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        raise InputError("`name` must be given to a run that torchrun restarts, for it to be found again")
    return Path(args.output) / (args.name or datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))


def begin_run(
    args: argparse.Namespace, configs: Sequence[RunConfig], folder: str | Path, data: str, held: ExitStack
) -> Path | None:
    """The folder of a new or unfinished run, which ``held`` holds from now on; None if the run is finished.

    Raises:
        InputError: if the folder cannot be made, belongs to a run with other settings or data, or is held by another
            job.
    """
    directory = run_directory(args)
    settings = {config.name: {**config.as_dict(), "data": data} for config in configs}
    if is_finished(directory, settings):
        print(f"{directory}: is finished, and nothing is left to do; the results are in {directory / 'results.json'}")
        return None
    make_folder(directory, "output")
    held.enter_context(folder_lock(directory, "name", "run"))
    open_run(directory, settings)
    record_data(directory, folder)
    return directory


def check_models(configs: Sequence[RunConfig], schema: Schema, world_size: int) -> None:
    """Builds every model on ``meta``, so that a wrong argument of any is reported before the first is trained."""
    for config in configs:
        check_batch_size(config, world_size)
        build_model(config, schema, torch.device("meta"))


def prepare(
    args: argparse.Namespace, configs: Sequence[RunConfig], shown: Mapping[str, Metric], known: Mapping[str, Metric]
) -> tuple[str | Path, Schema, dict[str, Split | StreamedSplit]]:
    """The folder of the data, and the data on this rank, after everything is checked that depends on them."""
    if args.data is not None:  # before it is prepared
        check_known(args, configs, dist.get_world_size())
    data = dataset_directory(args.dataset, args.data, args.sample, args.raw)
    schema = load_schema(data)
    for metric in shown:
        find_metric(metric, known, "metrics", with_groups=schema.group is not None)
    check_models(configs, schema, dist.get_world_size())
    read = stream_split if is_streamed(args.dataset, args.reader) else read_split
    splits = {split: read(data, split, schema) for split in ("train", "valid", "test")}
    if dist.get_rank() == 0:
        for sentence in absent_classes(splits, data):
            print(f"warning: {sentence}", flush=True)
        for sentence in unknown_ids(splits):
            print(sentence, flush=True)
    return data, schema, splits


def print_plans(configs: Sequence[RunConfig], schema: Schema, world_size: int) -> None:
    """Prints, beside the output, where each model's tables go and the bytes that they take; allocates nothing."""
    for config in configs:
        built = build_model(config, schema, torch.device("meta"))
        plan = plan_sharding(built, config.training, default_device(), world_size)
        described = describe_plan(plan, built, config.training, world_size)
        print(f"{config.system.title}: {described}", file=sys.stderr)


def run(args: argparse.Namespace, configs: Sequence[RunConfig]) -> None:
    """Runs the whole job."""
    trackers = named_trackers(args.trackers)
    require_extra("report", *["tensorboard"] * (TensorBoard in trackers), "matplotlib")
    require_extra("mlflow", *["mlflow"] * (MLflow in trackers))
    device = default_device()
    shown = named_metrics(args.metrics)
    known = {**METRICS, **shown}
    stop = StopRequest()
    timeout = timedelta(seconds=args.timeout)
    with stop.listening(), process_group(device, longest_wait(timeout)), ExitStack() as held:
        with stop.at_once():
            folder, schema, splits = on_every_rank(lambda: prepare(args, configs, shown, known))
            described = describe_data(splits)
            directory = on_first_rank(lambda: begin_run(args, configs, folder, described, held))
        if directory is None:
            return
        held.enter_context(watched(directory, timeout))
        reports = []
        for config in configs:
            own = directory / config.name
            report = on_first_rank(partial(read_report, config, own / "report.json"))
            if report is None:
                report = train_model(config, schema, splits, device, own, stop, known, trackers)
                if report.result.stopped:
                    if dist.get_rank() == 0:
                        print(f"{directory}: not finished; the same command with `--name {directory.name}` resumes it")
                    return
                if dist.get_rank() == 0:
                    save_report(report, own / "report.json")
            reports.append(report)
        if dist.get_rank() == 0:
            write_report(reports, schema, directory, list(shown), known, described, unknown_ids(splits))
            print(next_steps(reports, args.models, directory, folder), flush=True)


def run_days(args: argparse.Namespace, configs: Sequence[RunConfig]) -> int:
    """Runs the job over days, and returns its status."""
    if len(configs) != 1:
        raise InputError(f"`models` (={args.models!r}) must name one model with `days`")
    if args.reader == "stream":
        raise InputError("`reader` (='stream') must be 'auto' or 'mapped' with `days`: a day is read from its columns")
    if configs[0].scene:
        raise InputError(f"`scene` (={configs[0].scene!r}) must be empty with `days`: a day is measured as a whole")
    check_batch_size(configs[0], int(os.environ.get("WORLD_SIZE", "1")))
    days = parse_days(args.days)
    skipped = [day for text in filter(None, args.skip_days.split(",")) for day in parse_days(text)]
    metrics = {**METRICS, **named_metrics(args.metrics)}
    bounds, timeout = Bounds.parse(args.bounds), timedelta(seconds=args.timeout)
    daily = DailyRun(configs[0], find_table(args.dataset), run_directory(args), bounds, metrics, timeout)
    return daily.run(days, skipped)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job and returns status 0, also if the job was asked to stop; `BEYOND_BOUNDS` if a day is not published.

    Raises:
        InputError: if the user made a mistake.
        TrainingError: if the run cannot continue.
    """
    options = parser()
    args = options.parse(argv)
    configs = configure(args)
    if args.help:
        options.print_help()
        print("\n" + describe(configs))
    elif args.show_config:
        print(to_json({config.name: config.as_dict() for config in configs}, indent=2))
        share = 1.0 if args.sample is None else args.sample
        folder = table_directory(args.data, share) if isinstance(args.data, Table) else Path(args.dataset)
        if (folder / SCHEMA_FILE).is_file():
            print_plans(configs, Schema.load(folder), int(os.environ.get("WORLD_SIZE", "1")))
        else:
            print(
                f"{args.dataset}: not a prepared folder here, so the bytes of tables are not known yet", file=sys.stderr
            )
    else:
        try:
            with redacted(args.redact):
                if args.days:
                    return run_days(args, configs)
                run(args, configs)
        except Stopped:
            if int(os.environ.get("RANK", "0")) == 0:
                print("asked to stop before training; the same command starts again")
    return 0
