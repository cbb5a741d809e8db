"""What the jobs that use a trained run share: the run, the rows, the logits of all ranks."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from torchrec_mtl.data import BatchLoader, Schema, Split, StreamedSplit, StreamLoader, load_schema
from torchrec_mtl.data.lists import Array
from torchrec_mtl.errors import InputError, check_at_least
from torchrec_mtl.jobs.command_line import Parser, named
from torchrec_mtl.jobs.datasets import DATASETS, add_sample, check_sample, dataset_directory, find_dataset, open_split
from torchrec_mtl.jobs.loading import LoadedRun, load_run
from torchrec_mtl.systems import SYSTEMS, System
from torchrec_mtl.training.process_group import default_device, process_group


def run_parser(job: str, description: str | None) -> Parser:
    """The options that name a run and a model in it."""
    options = Parser(prog=f"torchrec-mtl {job}", description=description)
    options.add_argument("run", metavar="RUN", help="folder of a run, such as runs/my_run, or of a model in it")
    options.add_argument("--model", default="", help="name of the model, if the run has several")
    options.add_argument("--system", default="", help="the run's system, if it is your own: package.module:SYSTEM")
    options.add_argument("--batch-size", type=int, default=4096, help="rows that go through the model (%(default)s)")
    return options


def add_dataset(options: Parser) -> None:
    """Adds the options that name a prepared data set."""
    options.add_argument(
        "--dataset",
        required=True,
        help=f"{', '.join(DATASETS)}, package.module:DATA_SET, or a prepared folder or its URI",
    )
    add_sample(options)
    options.add_argument("--raw", default="", help="folder of the raw files, for --dataset ali_ccp or taobao")


def parse_run(options: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses a command line, and finds the run's system if it is named; raises `InputError` if something is wrong."""
    args = options.parse(argv)
    check_at_least(1, batch_size=args.batch_size)
    args.system = named("system", args.system, SYSTEMS, System) if args.system else None
    return args


def check_dataset(args: argparse.Namespace) -> None:
    """Checks the options of `add_dataset`; ``args.data`` becomes what ``args.dataset`` names. Raises `InputError`."""
    check_sample(args.sample)
    args.data = find_dataset(args.dataset)


@contextmanager
def opened_run(args: argparse.Namespace) -> Iterator[LoadedRun]:
    """Loads the run of the options, plain in one process, sharded under torchrun.

    Raises:
        InputError: if an option is wrong, or the run cannot be loaded.
    """
    device = default_device()
    with process_group(device):
        sharded = dist.get_world_size() > 1
        yield load_run(args.run, args.model or None, system=args.system, sharded=sharded, device=device)


def read_rows(args: argparse.Namespace, run: LoadedRun, split: str) -> tuple[Path | str, Split | StreamedSplit]:
    """Returns the folder or the URI of the data set, and one split of it.

    Raises:
        InputError: if the data set does not have the run's fields, tasks and vocabularies.
    """
    data = dataset_directory(args.dataset, args.data, args.sample, args.raw)
    schema = load_schema(data)
    check_same_columns(schema, run.schema)
    return data, open_split(data, split, schema)


def check_same_columns(found: Schema, trained: Schema) -> None:
    """Raises `InputError` unless ids and dense columns mean what they meant when the model was trained."""
    for what in ("fields", "dense", "vocabulary_digest"):
        if getattr(found, what) != getattr(trained, what):
            rule = f"must have the {what} of the data that the run was trained on ({trained.name!r})"
            raise InputError(f"data set {found.name!r} {rule}")
    if not found.tasks.same_labels(trained.tasks):
        raise InputError(f"data set {found.name!r} must have the tasks of the run, {trained.tasks}, not {found.tasks}")


@dataclass(frozen=True)
class Scored:
    """The logits of rows of a split, and what they are measured against.

    Args:
        rows: positions of the rows in the split ``[N]``.
        logits: logits ``[N, T]``, or ``[N, L]`` where tasks are values.
        labels: labels ``[N, T]``.
        weights: weights of the labels ``[N, T]``; None if they have none.
        groups: groups ``[N]``; None if the data have none.
    """

    rows: Array
    logits: Array
    labels: Array
    weights: Array | None = None
    groups: Array | None = None


@torch.no_grad()
def score_share(model: nn.Module, split: Split | StreamedSplit, device: torch.device, batch_size: int) -> Scored:
    """Returns the logits of this rank's rows; the ranks share the rows of the split, and all call it."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    model.eval()
    of_rank: dict[str, Any] = {"batch_size": max(1, batch_size // world_size), "rank": rank, "world_size": world_size}
    of_rank["with_groups"] = False  # a model reads none
    loader = StreamLoader(split, **of_rank) if isinstance(split, StreamedSplit) else BatchLoader(split, **of_rank)
    columns: dict[str, list[Array]] = {"rows": [rows.numpy() for rows in loader.rows()]}
    if (groups := loader.groups()) is not None:
        columns["groups"] = [torch.as_tensor(each).numpy() for each in groups]
    for batch in loader:
        moved, num_rows = batch.to(device), len(batch.labels) - batch.num_padded
        logits = model(moved.dense_features, moved.sparse_features).float().cpu()
        found = {"logits": logits, "labels": batch.labels, "weights": batch.weights}
        for name, values in found.items():
            if values is not None:
                columns.setdefault(name, []).append(values[:num_rows].numpy())
    return Scored(**{name: np.concatenate(parts) for name, parts in columns.items()})


def score(model: nn.Module, split: Split | StreamedSplit, device: torch.device, batch_size: int) -> Scored:
    """Returns the logits of all rows, in order, on every rank; the ranks share the rows, and all call it."""
    of_ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_ranks, vars(score_share(model, split, device, batch_size)))
    order = np.concatenate([each["rows"] for each in of_ranks]).argsort()
    names = [name for name, column in of_ranks[0].items() if column is not None]
    return Scored(**{name: np.concatenate([each[name] for each in of_ranks])[order] for name in names})
