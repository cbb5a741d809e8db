"""Measures a trained run on a prepared data set, whole and by slices.

``torchrec-mtl evaluate runs/my_run --dataset FOLDER``, or ``torchrun ... -m torchrec_mtl evaluate``.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from torchrec_mtl.data import SPLITS
from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.stream_files import locate
from torchrec_mtl.errors import InputError, check_choice
from torchrec_mtl.files import to_json, write_whole
from torchrec_mtl.jobs.command_line import Parser, named_metrics
from torchrec_mtl.jobs.loading import LoadedRun
from torchrec_mtl.jobs.results import aligned
from torchrec_mtl.jobs.scoring import (
    Scored,
    add_dataset,
    check_dataset,
    opened_run,
    parse_run,
    read_rows,
    run_parser,
    score_share,
)
from torchrec_mtl.metrics import METRICS, Metric, MultiTaskMetrics
from torchrec_mtl.tasks import TaskForest
from torchrec_mtl.training.evaluation import Measurements
from torchrec_mtl.training.process_group import on_every_rank

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
    scored: Scored, tasks: TaskForest, metrics: Mapping[str, Metric] = METRICS, rows: Array | None = None
) -> Measurements:
    """Measures the logits of all ranks, or of their rows at the positions ``rows`` of the split; all ranks call it.

    Args:
        scored: logits of this rank's rows.
        tasks: funnel of tasks.
        metrics: metrics to measure, by name.
        rows: positions in the split; all by default.

    Returns:
        Rows ``{task, space, metric, value}``, the same on every rank.

    Raises:
        InputError: on every rank, if a logit of any rank is NaN or infinite, or no rank has a row.
    """
    collected = MultiTaskMetrics(tasks, scored.groups is not None, metrics)
    chosen = np.arange(len(scored.rows)) if rows is None else np.isin(scored.rows, rows).nonzero()[0]
    columns = (scored.logits, scored.labels, scored.weights, scored.groups)

    def collect() -> None:
        for first in range(0, len(chosen), 2**16):
            part = chosen[first : first + 2**16]
            logits, labels, *rest = (None if each is None else torch.from_numpy(each[part]) for each in columns)
            assert logits is not None
            assert labels is not None
            collected.update(logits, labels, *rest)

    on_every_rank(collect)
    return collected.compute()


def slices(data: Path | str, split: str, column: str, every: str = "1d") -> dict[str, Array]:
    """Returns the rows of each value of a column of the prepared files; of each span of ``every``, if it holds times.

    Raises:
        InputError: if there is no such column, it holds lists, or there are more than `MOST_SLICES` values.
    """
    location, parts = locate(data), []
    for name in location.parts(split):
        with location.reaching(name), location.filesystem.open_input_file(f"{location.path}/{name}") as file:
            opened = pq.ParquetFile(file, page_checksum_verification=True)
            names = opened.schema_arrow.names
            if column not in names:
                raise InputError(f"`by` (={column!r}) must be a column of {location.name}/{name}: {names}")
            parts.append(pl.Series(opened.read([column])[column]))
    values = pl.concat(parts)
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
    scored, tasks = score_share(run.model, split, run.device, args.batch_size), run.schema.tasks
    found = [{"slice": None, **row} for row in measure(scored, tasks, args.metrics)]
    if args.by:
        for name, rows in slices(data, args.split, args.by, args.every).items():
            found += [{"slice": name, **row} for row in measure(scored, tasks, args.metrics, rows)]
    return found


def table(found: Measurements, by: str) -> str:
    """The figures in aligned columns: of all impressions, then of the rows where the step before happened.

    Values, and quantiles, have tables of their own.
    """
    parts, kinds = [], {(row["task"], row["metric"]) for row in found}
    blocks: dict[tuple[str, str], Measurements] = {}
    for row in sorted(found, key=lambda row: row["space"] != "impressions"):
        title = "all impressions" if row["space"] == "impressions" else "where the step before happened"
        kind = next((metric for metric in ("rmse", "pinball", "class_log_loss") if (row["task"], metric) in kinds), "")
        blocks.setdefault((title, kind), []).append(row)
    for (title, _), chosen in blocks.items():
        lines: dict[tuple[Any, ...], dict[str, float]] = {}
        for row in chosen:
            lines.setdefault((row["slice"], row["task"]), {})[row["metric"]] = row["value"]
        names = list(dict.fromkeys(row["metric"] for row in chosen))
        cells = [[*([by] if by else []), "task", *names]]
        for (of_slice, task), values in lines.items():
            shown = (_written(name, values.get(name)) for name in names)
            cells.append([*([of_slice or "all"] if by else []), task, *shown])
        parts += ["", title, *aligned(cells)]
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
