"""Trains models on a prepared funnel, one after the other, and reports them side by side.

``torchrec-mtl train --help``; as a TorchX job, ``torchx run -s local_cwd mtl.train``.
"""

import argparse
import os
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from torchrec_mtl.data import Schema, read_split
from torchrec_mtl.errors import InputError, check_choice
from torchrec_mtl.files import make_folder, read_json, to_json, write_whole
from torchrec_mtl.jobs.absent_classes import absent_classes
from torchrec_mtl.jobs.build import build_model
from torchrec_mtl.jobs.command_line import Parser, named, named_metrics
from torchrec_mtl.jobs.datasets import DATASETS, SETTINGS, dataset_directory, find_dataset
from torchrec_mtl.jobs.results import read_report, save_report, write_report
from torchrec_mtl.jobs.run_config import RunConfig, describe_data, first_difference
from torchrec_mtl.jobs.settings import PAPER, describe, make_config
from torchrec_mtl.jobs.single_run import train_model
from torchrec_mtl.metrics import METRICS, find_metric
from torchrec_mtl.systems import SYSTEMS, System
from torchrec_mtl.training.evaluation import early_stopping_metric
from torchrec_mtl.training.faults import StopRequest
from torchrec_mtl.training.process_group import default_device, on_first_rank, process_group


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
        help=f"{', '.join(DATASETS)}, package.module:DATA_SET, or folder of a prepared data set (%(default)s)",
    )
    options.add_argument(
        "--sample", type=float, default=0.2, help="share of the rows of a named data set (%(default)s)"
    )
    options.add_argument("--raw", default="", help="folder of the raw files, for --dataset ali_ccp or taobao")
    options.add_argument(
        "--settings",
        default="",
        help=f"initial settings, {' or '.join(SETTINGS)} (those of the data set, otherwise paper)",
    )
    options.add_argument(
        "--metrics",
        default="auc",
        help=f"metrics in tables, separated by commas (%(default)s): {', '.join(METRICS)}, or package.module:METRIC",
    )
    options.add_argument("--seed", type=int, default=0, help="seed of initialisation and row order (%(default)s)")
    options.add_argument(
        "--name", default="", help="name of the run, a new one or an unfinished one to resume (date and time)"
    )
    options.add_argument("--output", default="runs", help="folder of all runs (%(default)s)")
    options.add_argument("--show-config", action="store_true", help="print the settings of the runs, and stop")
    options.add_argument(
        "-h", "--help", action="store_true", help="print this help with every setting of --models, and stop"
    )
    return options


def configure(args: argparse.Namespace) -> list[RunConfig]:
    """The runs of the models, checked before any data is read."""
    if args.settings:
        check_choice("settings", args.settings, list(SETTINGS))
        settings = SETTINGS[args.settings]
    else:
        dataset = find_dataset(args.dataset)
        settings = PAPER if dataset is None else dataset.settings
    systems = find_systems(args.models)
    names = [system.name for system in systems]
    given = [f"training.seed={args.seed}", *args.settings_given]
    configs = [make_config(system, settings, given, names) for system in systems]
    known = {**METRICS, **named_metrics(args.metrics)}
    for config in configs:
        early_stopping_metric(config.training, known)
    return configs


def check_arguments(argv: Sequence[str]) -> list[RunConfig]:
    """The runs that a command line asks for.

    Raises:
        InputError: if they cannot be made, whatever the data.
    """
    return configure(parser().parse(argv))


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


def run_directory(args: argparse.Namespace, configs: Sequence[RunConfig], data: str) -> Path:
    """The folder of the run: a new one, or that of an unfinished run with the same settings and data, which resumes.

    Raises:
        InputError: if the run is finished or was made with other settings or data; or if the run has no name but
            torchrun may restart it, which would give it a new name.
    """
    if not args.name and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        raise InputError("`name` must be given to a run that torchrun restarts, for it to be found again")
    directory = Path(args.output) / (args.name or datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    wanted = {config.name: {**config.as_dict(), "data": data} for config in configs}
    file = directory / "config.json"
    if not directory.exists():
        make_folder(directory, "output")
        write_whole(file, to_json(wanted, indent=2) + "\n")
    elif (directory / "results.json").exists():
        raise InputError(f"`name` (={args.name!r}) must be a new or an unfinished run's, but {directory} is finished")
    elif not file.is_file():
        raise InputError(f"`name` (={args.name!r}) must be a new run's, but {directory} is there and is no run")
    elif difference := first_difference(read_json(file), wanted):
        raise InputError(f"{file}: the unfinished run was made with {difference}; name another, or remove the folder")
    return directory


def check_models(configs: Sequence[RunConfig], schema: Schema) -> None:
    """Builds every model on ``meta``, so that a wrong argument of any is reported before the first is trained."""
    for config in configs:
        parts = dist.get_world_size() * config.training.micro_batches
        if config.training.batch_size % parts:
            raise InputError(
                f"`batch_size` (={config.training.batch_size}) must be a multiple of the number of processes times "
                f"`micro_batches` ({parts})"
            )
        build_model(config, schema, torch.device("meta"))


def run(args: argparse.Namespace, configs: Sequence[RunConfig]) -> None:
    """Runs the whole job."""
    device = default_device()
    shown = named_metrics(args.metrics)
    known = {**METRICS, **shown}
    stop = StopRequest()
    with stop.listening(), process_group(device):
        data = dataset_directory(args.dataset, args.sample, args.raw)
        schema = Schema.load(data)
        for metric in shown:
            find_metric(metric, known, "metrics", with_groups=schema.group is not None)
        check_models(configs, schema)
        splits = {split: read_split(data, split, schema) for split in ("train", "valid", "test")}
        described = describe_data(splits)
        if dist.get_rank() == 0:
            for sentence in absent_classes(splits, data):
                print(f"warning: {sentence}", flush=True)
        directory = on_first_rank(lambda: run_directory(args, configs, described))
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
            write_report(reports, schema, directory, list(shown), known, described)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job and returns status 0, also if the job was asked to stop.

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
    else:
        run(args, configs)
    return 0
