"""Wrong arguments of models and losses are found before a job is submitted, also if its data are not there yet."""

from dataclasses import replace
from pathlib import Path

import torch

from torchrec_mtl.data import Field, Schema
from torchrec_mtl.data.schema import SCHEMA_FILE
from torchrec_mtl.data.table import Table
from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.build import build_model
from torchrec_mtl.jobs.datasets import DataSet
from torchrec_mtl.jobs.run_config import RunConfig
from torchrec_mtl.modules import HistoryConfig
from torchrec_mtl.systems import LOSSES, SYSTEMS
from torchrec_mtl.tasks import Task, TaskChain, TaskForest, delayed_task, real_negative_task
from torchrec_mtl.training.sharding import check_table_names

_FIELDS = ("first", "second")  # which fields there are matters to no argument that does not name them


def check_buildable(config: RunConfig, dataset: str, found: DataSet | Table | None) -> None:
    """Builds the model and its loss on ``meta`` for a data set, as far as that is known.

    A prepared folder has its tables and tasks; a data set in `DATASETS` may name its tasks. For other data, a model of
    this library must suit some tasks: a chain of 1 to 4, or of as many as an argument has values, perhaps
    with late labels.

    Args:
        config: settings of the run.
        dataset: what a command line names: a data set, or a folder that may not be there yet.
        found: what `find_dataset` returns for it.

    Raises:
        InputError: if an argument is wrong for these tasks, or for any; or if ``tables`` names one that is not there.

    Example::

        >>> from torchrec_mtl.jobs.settings import PAPER, make_config
        >>> check_buildable(make_config(SYSTEMS["tafe"], PAPER, ["model_args.dropout=3"]), "/not/here/yet", None)
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `dropout` (=3.0) must be from 0 to 1
    """
    if (Path(dataset) / SCHEMA_FILE).is_file():
        check_table_names(build_model(config, Schema.load(dataset), torch.device("meta")), config.training)
        return
    if found is not None and found.tasks is not None:
        _build(config, found.tasks)
    elif config.system in SYSTEMS.values() and config.loss in LOSSES.values():
        errors = [_error(config, tasks) for tasks in _some_tasks(config)]
        if errors[0] is not None and None not in errors:
            raise errors[0]


def _error(config: RunConfig, tasks: TaskForest) -> InputError | None:
    try:
        _build(config, tasks)
    except InputError as error:
        return error
    return None


def _build(config: RunConfig, tasks: TaskForest) -> None:
    named = [*config.zch.fields, *([config.scene] if config.scene else [])]
    for argument, value in config.model_args.items():
        if argument.endswith("_fields") and isinstance(value, (list, tuple)):
            named += value
    fields = [Field(name, 2) for name in dict.fromkeys([*_FIELDS, *named])]
    without = replace(config, histories=HistoryConfig())  # whose fields must share a table that is not known
    build_model(without, Schema("unseen", fields, tasks, group=_FIELDS[0]), torch.device("meta"))


def _some_tasks(config: RunConfig) -> list[TaskForest]:
    """Chains of 2, 1, 3 and 4 tasks, and of as many as an argument has values; and as many with late labels."""
    values = [*config.model_args.values(), *config.loss_args.values()]
    counts = [2, 1, 3, 4, *(len(value) for value in values if isinstance(value, (list, tuple)) and value)]
    chains = [TaskChain([f"task_{t}" for t in range(count)]) for count in dict.fromkeys(counts)]
    return [*chains, *(_with_late_labels(chain) for chain in chains if len(chain) > 2)]


def _with_late_labels(chain: TaskForest) -> TaskForest:
    """Returns as many tasks, of which the last two are what `DelayedLoss` needs."""
    late = chain.names[-3]
    return TaskForest(*chain.tasks[:-2], Task(delayed_task(late)), Task(real_negative_task(late)))
