"""Measures a trained run on a prepared data set, whole and by slices.

``torchrec-mtl evaluate runs/my_run --dataset FOLDER``, or ``torchrun ... -m torchrec_mtl evaluate``.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.distributed as dist

from torchrec_mtl.data import SPLITS, Split
from torchrec_mtl.data.lists import Array
from torchrec_mtl.errors import InputError, check_choice
from torchrec_mtl.files import to_json, write_whole
from torchrec_mtl.jobs.command_line import Parser, named_metrics
from torchrec_mtl.jobs.loading import LoadedRun
from torchrec_mtl.jobs.results import aligned
from torchrec_mtl.jobs.scoring import (
    add_dataset,
    check_dataset,
    logits_of,
    opened_run,
    parse_run,
    read_rows,
    run_parser,
)
from torchrec_mtl.metrics import METRICS, Metric, MultiTaskMetrics
from torchrec_mtl.tasks import TaskForest
from torchrec_mtl.training.evaluation import Measurements

MOST_SLICES = 100
_COUNTS = ("num_rows", "positives")


def parser() -> Parser:
    """The options."""
    options = run_parser("evaluate", __doc__)
    add_dataset(options)
    options.add_argument("--split", default="test", help=f"one of {', '.join(SPLITS)} (%(default)s)")
    options.add_argument("--by", default="", help="column of the prepared files: measure each of its values apart")
    options.add_argument("--every", default="1d", help="with --by a column of times: length of a slice (%(default)s)")
    options.add_argument("--metrics", default="", help="further metrics, as package.module:METRIC")
    options.add_argument("--output", default="", help="JSON file for all figures; only whole or not at all")
    return options


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked before the run is read; raises `InputError` if it is wrong."""
    args = parse_run(parser(), argv)
    check_choice("split", args.split, SPLITS)
    check_dataset(args)
    args.metrics = {**METRICS, **(named_metrics(args.metrics) if args.metrics else {})}
    return args


def measure(
    logits: Array, split: Split, tasks: TaskForest, metrics: Mapping[str, Metric] = METRICS, rows: Array | None = None
) -> Measurements:
    """Measures the logits ``[N, T]`` of a split, or of its rows at the positions ``rows``; all ranks call it.

    Returns:
        Rows ``{task, space, metric, value}``, the same on every rank.
    """
    groups = split.groups
    collected = MultiTaskMetrics(tasks, groups is not None, metrics)
    if dist.get_rank() == 0:  # every rank has all logits
        chosen = np.arange(len(split)) if rows is None else rows
        for part in np.array_split(chosen, -(-len(chosen) // 2**16)):
            numbers = torch.from_numpy(part.copy())
            batch = split.batch(numbers)
            of_part = None if groups is None else torch.as_tensor(groups)[numbers]
            collected.update(torch.from_numpy(logits[part]), batch.labels, batch.weights, of_part)
    return collected.compute()


def slices(data: Path, split: str, column: str, every: str = "1d") -> dict[str, Array]:
    """Returns the rows of each value of a column of the prepared files; of each span of ``every``, if it holds times.

    Raises:
        InputError: if there is no such column, it holds lists, or there are more than `MOST_SLICES` values.
    """
    file = data / f"{split}.parquet"
    names = pl.read_parquet_schema(file)
    if column not in names:
        raise InputError(f"`by` (={column!r}) must be a column of {file}: {list(names)}")
    values = pl.read_parquet(file, columns=[column])[column]
    if values.dtype.is_nested():
        raise InputError(f"`by` (={column!r}) must be a column with one value a row, not {values.dtype}")
    if values.dtype.is_temporal():
        try:
            values = values.dt.truncate(every)
        except pl.exceptions.PolarsError as error:
            raise InputError(f"`every` (={every!r}) must be a time span such as '1d' or '6h'") from error
    if (number := values.n_unique()) > MOST_SLICES:
        raise InputError(f"`by` (={column!r}) must have at most {MOST_SLICES} values, not {number}")
    rows = pl.DataFrame({"value": values, "row": np.arange(len(values))}).group_by("value").agg("row").sort("value")
    return {str(value): row.to_numpy() for value, row in zip(rows["value"], rows["row"], strict=True)}


def figures(args: argparse.Namespace, run: LoadedRun) -> Measurements:
    """Rows ``{slice, task, space, metric, value}``; the slice of the whole split is None."""
    data, split = read_rows(args, run, args.split)
    logits, tasks = logits_of(run.model, split, run.device, args.batch_size), run.schema.tasks
    found = [{"slice": None, **row} for row in measure(logits, split, tasks, args.metrics)]
    if args.by:
        for name, rows in slices(data, args.split, args.by, args.every).items():
            found += [{"slice": name, **row} for row in measure(logits, split, tasks, args.metrics, rows)]
    return found


def table(found: Measurements, by: str) -> str:
    """The figures in aligned columns: of all impressions, then of the rows where the step before happened."""
    parts = []
    for title, chosen in {
        "all impressions": [row for row in found if row["space"] == "impressions"],
        "where the step before happened": [row for row in found if row["space"] != "impressions"],
    }.items():
        lines: dict[tuple[Any, ...], dict[str, float]] = {}
        for row in chosen:
            lines.setdefault((row["slice"], row["task"]), {})[row["metric"]] = row["value"]
        names = list(dict.fromkeys(row["metric"] for row in chosen))
        cells = [[*([by] if by else []), "task", *names]]
        for (of_slice, task), values in lines.items():
            shown = (_written(name, values.get(name)) for name in names)
            cells.append([*([of_slice or "all"] if by else []), task, *shown])
        parts += ["", title, *aligned(cells)] if chosen else []
    return "\n".join(parts[1:])


def _written(name: str, value: float | None) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:,.0f}" if name in _COUNTS else f"{value:.4f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measures the run, prints a table, and returns status 0.

    Raises:
        InputError: if the user made a mistake.
    """
    args = parse(argv)
    with opened_run(args) as run:
        found = figures(args, run)
        if dist.get_rank() == 0:
            print(f"{run.folder}, step {run.checkpoint.name.removeprefix('step_')}, {args.split} split\n")
            print(table(found, args.by))
            if args.output:
                write_whole(Path(args.output), "[\n" + ",\n".join(to_json(row) for row in found) + "\n]\n")
    return 0
