"""The command line of the training job, checked before any data are read."""

import argparse
from collections.abc import Callable, Sequence

from torchrec_mtl.errors import InputError, check_at_least, check_choice, check_file_name
from torchrec_mtl.jobs.command_line import REDACT_HELP, Parser, named, named_metrics
from torchrec_mtl.jobs.datasets import (
    DATASETS,
    READERS,
    SETTINGS,
    DataSet,
    add_sample,
    check_sample,
    find_dataset,
    is_streamed,
)
from torchrec_mtl.jobs.known_tasks import check_buildable
from torchrec_mtl.jobs.run_config import RunConfig
from torchrec_mtl.jobs.settings import PAPER, make_config
from torchrec_mtl.metrics import METRICS
from torchrec_mtl.systems import SYSTEMS, System
from torchrec_mtl.training.evaluation import early_stopping_metric
from torchrec_mtl.training.hang import TIMEOUT
from torchrec_mtl.training.trackers import TRACKERS, Tracker

DESCRIPTION = """Trains models on a prepared funnel, one after the other, and reports them side by side.

``torchrec-mtl train --help``; as a TorchX job, ``torchx run -s local_cwd mtl.train``.
"""


def parser() -> Parser:
    """The options; settings have the form path=value."""
    options = Parser(prog="torchrec-mtl train", description=DESCRIPTION, add_help=False)
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
        "--trackers",
        default="tensorboard",
        help=f"what records loss and validation besides metrics.jsonl, separated by commas (%(default)s): "
        f"{', '.join(TRACKERS)}, or package.module:TRACKER; '' for none",
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
    named_trackers(args.trackers)
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


def check_batch_size(config: RunConfig, world_size: int) -> None:
    """Raises `InputError` unless a batch can be divided among ``world_size`` processes."""
    parts = world_size * config.training.micro_batches
    if config.training.batch_size % parts:
        raise InputError(
            f"`batch_size` (={config.training.batch_size}) must be a multiple of the number of processes times "
            f"`micro_batches` ({parts})"
        )


def named_trackers(text: str) -> list[Callable[[], Tracker]]:
    """The trackers named in ``text``, separated by commas: this library's, and others as ``package.module:TRACKER``.

    Raises:
        InputError: if there is no such tracker, or it is no class with the methods of `Tracker`.

    Example::

        >>> [tracker.__name__ for tracker in named_trackers("tensorboard,mlflow")]
        ['TensorBoard', 'MLflow']
    """
    found = []
    for name in filter(None, text.split(",")):
        tracker = named("tracker", name, TRACKERS, type)
        for method in ("start", "scalars", "close"):
            if not hasattr(tracker, method):
                raise InputError(f"tracker {name!r} must have the method `{method}` of `Tracker`")
        found.append(tracker)
    return found
