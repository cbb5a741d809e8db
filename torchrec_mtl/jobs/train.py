"""Trains models on a prepared funnel, one after the other, and reports them side by side.

``torchrec-mtl train --help``; as a TorchX job, ``torchx run -s local_cwd mtl.train``.
"""

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
from torchrec_mtl.errors import (
    InputError,
    check_at_least,
    check_choice,
    check_file_name,
    redacted,
)
from torchrec_mtl.files import make_folder, to_json
from torchrec_mtl.jobs.absent_classes import absent_classes
from torchrec_mtl.jobs.build import build_model
from torchrec_mtl.jobs.command_line import REDACT_HELP, Parser, named, named_metrics
from torchrec_mtl.jobs.daily.bounds import Bounds
from torchrec_mtl.jobs.daily.folder import parse_days
from torchrec_mtl.jobs.daily.job import DailyRun
from torchrec_mtl.jobs.datasets import (
    DATASETS,
    READERS,
    SETTINGS,
    DataSet,
    add_sample,
    check_sample,
    dataset_directory,
    find_dataset,
    is_streamed,
    table_directory,
)
from torchrec_mtl.jobs.declarations import find_table
from torchrec_mtl.jobs.environment import require_extra
from torchrec_mtl.jobs.folder_lock import folder_lock
from torchrec_mtl.jobs.known_tasks import check_buildable
from torchrec_mtl.jobs.loading import record_data
from torchrec_mtl.jobs.results import read_report, save_report, write_report
from torchrec_mtl.jobs.run_config import RunConfig, describe_data
from torchrec_mtl.jobs.run_folder import is_finished, open_run
from torchrec_mtl.jobs.settings import PAPER, describe, make_config
from torchrec_mtl.jobs.single_run import train_model
from torchrec_mtl.jobs.unknown_ids import unknown_ids
from torchrec_mtl.metrics import METRICS, Metric, find_metric
from torchrec_mtl.systems import SYSTEMS, System
from torchrec_mtl.training.evaluation import early_stopping_metric
from torchrec_mtl.training.faults import Stopped, StopRequest
from torchrec_mtl.training.hang import TIMEOUT, longest_wait, watched
from torchrec_mtl.training.process_group import default_device, on_every_rank, on_first_rank, process_group
from torchrec_mtl.training.sharding import describe_plan, plan_sharding


def parser() -> Parser:
    """The options; settings have the form path=value."""
    options = Parser(prog="torchrec-mtl train", description=__doc__, add_help=False)
    options.add_argument(
        "settings_given", metavar="path=value", nargs="*", help="settings, such as training.max_epochs=3"
    )
    options.add_argument(
        "--models",
        default="single_task,shared_bottom,bpcm,tafe",
        help=f"models, separated by commas (%(default)s): {', '.join(SYSTEMS)}, or package.module:SYSTEM",
    )
    options.add_argument(
        "--dataset",
        default="complete_journey",
        help=f"{', '.join(DATASETS)}, a declared table as shop.py, package.module:DATA_SET, or folder or URI (s3://, "
        "gs://, hdfs://, abfs://) of a prepared data set (%(default)s)",
    )
    options.add_argument(
        "--reader",
        default="auto",
        help=f"how rows are read, {', '.join(READERS)}: mapped from columns that are written beside the data once, or "
        "streamed in place; auto streams from a URI (%(default)s)",
    )
    add_sample(options)
    options.add_argument("--raw", default="", help="folder of the raw files, for --dataset ali_ccp or taobao")
    options.add_argument(
        "--settings",
        default="",
        help=f"initial settings, {' or '.join(SETTINGS)} (the data set's, otherwise paper)",
    )
    options.add_argument(
        "--metrics",
        default="auc",
        help=f"metrics in tables, separated by commas (%(default)s): {', '.join(METRICS)}, or package.module:METRIC",
    )
    options.add_argument(
        "--days",
        default="",
        help="days of a declared table, 2026-11-01..2026-11-07: each is scored with the model of the day before, then "
        "trained on and published in the folder days of the run; one of --models",
    )
    options.add_argument(
        "--bounds",
        default="",
        help="bounds within which a day is published: least_auc=0.6,least_auc.buy=0.7,most_auc_fall=0.05,"
        "most_calibration_error=0.2,most_normalized_entropy=1",
    )
    options.add_argument("--skip-days", default="", help="days to leave out, separated by commas")
    options.add_argument("--seed", type=int, default=0, help="seed of initialisation and row order (%(default)s)")
    options.add_argument(
        "--name", default="", help="name of the run, a new one or an unfinished one to resume (date and time)"
    )
    options.add_argument("--output", default="runs", help="folder of all runs (%(default)s)")
    options.add_argument("--redact", action="store_true", help=REDACT_HELP)
    options.add_argument(
        "--timeout",
        type=int,
        default=int(TIMEOUT.total_seconds()),
        help="seconds without a step after which every process leaves its stack in the folder of the run and ends "
        "(%(default)s)",
    )
    options.add_argument(
        "--show-config",
        action="store_true",
        help="print the settings of the runs and, for a prepared folder, the bytes of each table and rank; and stop",
    )
    options.add_argument(
        "-h", "--help", action="store_true", help="print this help with every setting of --models, and stop"
    )
    return options


def configure(args: argparse.Namespace) -> list[RunConfig]:
    """The runs of the models, checked before any data is read; ``args.data`` becomes what ``args.dataset`` names."""
    check_sample(args.sample)
    is_streamed(args.dataset, args.reader)  # checks the choice
    check_at_least(1, timeout=args.timeout)
    if args.name:
        check_file_name("`name`", args.name)
    if args.days and args.sample is not None:
        raise InputError(f"`sample` (={args.sample}) must not be given with `days`, which are read whole")
    args.data = None if args.days else find_dataset(args.dataset)
    if args.settings:
        check_choice("settings", args.settings, list(SETTINGS))
        settings = SETTINGS[args.settings]
    else:
        settings = args.data.settings if isinstance(args.data, DataSet) else PAPER
    systems = find_systems(args.models)
    names = [system.name for system in systems]
    given = [f"training.seed={args.seed}", *args.settings_given]
    configs = [make_config(system, settings, given, names) for system in systems]
    known = {**METRICS, **named_metrics(args.metrics)}
    for config in configs:
        early_stopping_metric(config.training, known)
    return configs


def check_arguments(argv: Sequence[str], world_size: int = 1) -> list[RunConfig]:
    """The runs that a command line asks for, on ``world_size`` processes.

    Raises:
        InputError: if they cannot be made, whatever the rows, see `check_buildable`.
    """
    args = parser().parse(argv)
    configs = configure(args)
    check_known(args, configs, world_size)
    return configs


def check_known(args: argparse.Namespace, configs: Sequence[RunConfig], world_size: int) -> None:
    """Checks batch sizes, and models as far as the data are known; reads no rows. Raises `InputError`."""
    for config in configs:
        check_batch_size(config, world_size)
        if not args.days:  # a declaration may be of files that only the job sees
            check_buildable(config, args.dataset, args.data)


def find_systems(models: str) -> list[System]:
    """The systems named in ``models``, separated by commas.

    Raises:
        InputError: if there is no such system, or two have the same name.
    """
    systems = [named("model", name, SYSTEMS, System) for name in models.split(",")]
    for system in systems:
        if [other.name for other in systems].count(system.name) > 1:
            raise InputError(f"`models` (={models!r}) must not name {system.name!r} twice")
    return systems


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


def check_batch_size(config: RunConfig, world_size: int) -> None:
    """Raises `InputError` unless a batch can be divided among ``world_size`` processes."""
    parts = world_size * config.training.micro_batches
    if config.training.batch_size % parts:
        raise InputError(
            f"`batch_size` (={config.training.batch_size}) must be a multiple of the number of processes times "
            f"`micro_batches` ({parts})"
        )


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
    require_extra("report", "tensorboard", "matplotlib")
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
                report = train_model(config, schema, splits, device, own, stop, known)
                if report.result.stopped:
                    if dist.get_rank() == 0:
                        print(f"{directory}: not finished; the same command with `--name {directory.name}` resumes it")
                    return
                if dist.get_rank() == 0:
                    save_report(report, own / "report.json")
            reports.append(report)
        if dist.get_rank() == 0:
            write_report(reports, schema, directory, list(shown), known, described, unknown_ids(splits))


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
