"""Scores rows with a trained run: raw rows, if it was trained from a declared table, or prepared ones.

``torchrec-mtl predict runs/my_run --input ROWS --output scores.parquet``, or ``torchrun ... -m torchrec_mtl predict``.
"""

import argparse
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist
from pyarrow.fs import FileType

from torchrec_mtl.data import Schema
from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.schema import SCHEMA_FILE
from torchrec_mtl.data.stream_files import Location, locate
from torchrec_mtl.data.table import TableEncoder
from torchrec_mtl.data.table.formats import SourceFile
from torchrec_mtl.data.table.parts import Part
from torchrec_mtl.data.table.sources import find_files, read_parts
from torchrec_mtl.data.writer import write_parquet
from torchrec_mtl.errors import InputError
from torchrec_mtl.files import parse_json, read_json, to_json, write_whole
from torchrec_mtl.inference import Predictor
from torchrec_mtl.inference.predictor import unlabelled, value_of_tasks
from torchrec_mtl.jobs.command_line import Parser
from torchrec_mtl.jobs.datasets import StageBars
from torchrec_mtl.jobs.loading import LoadedRun
from torchrec_mtl.jobs.scoring import check_same_columns, opened_run, parse_run, run_parser, score
from torchrec_mtl.training.process_group import on_every_rank, on_first_rank

_JOB_FILE = "job.json"


def parser() -> Parser:
    """The options."""
    options = run_parser("predict", __doc__)
    options.add_argument(
        "--input", required=True, help="file, folder or glob of rows: parquet, csv, tsv, arrow or jsonl; path or URI"
    )
    options.add_argument("--output", required=True, help="parquet file for the scores; only whole or not at all")
    options.add_argument("--keep", default="", help="columns of the rows to write beside the scores, by commas")
    options.add_argument("--values", default="", help="value of each task for a ranking score, as click=1,buy=20")
    return options


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked before the run is read; raises `InputError` if it is wrong."""
    args = parse_run(parser(), argv)
    args.worth = parse_values(args.values)
    return args


def parse_values(text: str) -> dict[str, float] | None:
    """Returns the values of the tasks; None for an empty text.

    Raises:
        InputError: if the text is not of the form ``task=number,...``.

    Example::

        >>> parse_values("click=1,buy=20")
        {'click': 1.0, 'buy': 20.0}
    """
    if not text:
        return None
    values: dict[str, float] = {}
    for each in text.split(","):
        name, equals, number = each.partition("=")
        try:
            values[name] = float(number)
        except ValueError:
            equals = ""
        if not equals or not name or not math.isfinite(values[name]):
            raise InputError(f"`values` (={text!r}) must be of the form click=1,buy=20")
    return values


@dataclass(frozen=True)
class Scoring:
    """The rows to score and how to read them.

    Args:
        files: files of the rows.
        encoder: encoder of raw rows; None if rows are encoded already.
        columns: columns to read.
        keep: columns to write beside the scores.
    """

    files: Sequence[SourceFile]
    encoder: TableEncoder | None
    columns: Sequence[str]
    keep: Sequence[str]

    def parts(self) -> Iterator[tuple[Part, float]]:
        """Yields all rows, part by part, with the share of them that is before the part."""
        total, done = sum(file.size for file in self.files), 0
        for file in self.files:
            for part in read_parts(file, self.columns):
                yield part, done / total
            done += file.size

    def encoded(self, part: Part) -> pl.DataFrame:
        """The ids and dense columns of raw or encoded rows."""
        if self.encoder is not None:
            return self.encoder.encode(part.batch, part.source, part.first_row)
        frame = pl.from_arrow(pa.Table.from_batches([part.batch]))
        assert isinstance(frame, pl.DataFrame)
        return frame


def plan(args: argparse.Namespace, run: LoadedRun) -> Scoring:
    """Finds the rows. Files beside a ``schema.json`` are encoded; others are raw if the run has an encoder.

    Raises:
        InputError: if there are none, or they were prepared with other vocabularies.
    """
    files = find_files(args.input)
    keep = [name for name in args.keep.split(",") if name]
    beside = _folder(args.input)
    is_encoded = beside is not None and SCHEMA_FILE in beside.files()
    if beside is not None and is_encoded:
        content = parse_json(beside.read(SCHEMA_FILE), f"{beside.name}/{SCHEMA_FILE}")
        check_same_columns(Schema.from_json(content, beside.name), run.schema)
    if run.encoder is None or is_encoded:
        schema = run.schema
        columns = (*schema.field_names, *schema.id_weight_columns, *schema.dense)
        return Scoring(files, None, tuple(dict.fromkeys((*columns, *keep))), keep)
    return Scoring(files, run.encoder, tuple(dict.fromkeys((*run.encoder.columns, *keep))), keep)


def _folder(rows: str) -> Location | None:
    """The folder of rows, or that of a file or a glob of rows; None if there is none."""
    location = locate(rows)
    path = location.path
    if location.filesystem.get_file_info(path).type != FileType.Directory:
        path = str(PurePosixPath(path).parent)
        location = replace(location, name=location.name.removesuffix(location.path) + path, path=path)
    return location if location.filesystem.get_file_info(path).type == FileType.Directory else None


def predict(args: argparse.Namespace, run: LoadedRun) -> int:
    """Scores all rows, part by part; parts that an interrupted call left are not scored again.

    Returns:
        The number of rows.
    """
    output = Path(args.output)
    partial = output.with_name(output.name + ".partial")
    predictor = run.predictor(args.batch_size)
    worth = value_of_tasks(run.schema.tasks, args.worth)
    scoring = on_every_rank(lambda: plan(args, run))
    on_first_rank(lambda: _open(output, partial, _job(args, run, scoring)))
    bars = StageBars() if dist.get_rank() == 0 else None
    number = rows = 0
    for number, (part, share) in enumerate(scoring.parts()):
        file = partial / f"part-{number:06}.parquet"
        if not on_first_rank(file.is_file):
            split = on_every_rank(lambda part=part: unlabelled(run.schema, scoring.encoded(part), part.source))  # type: ignore[misc]
            logits = score(run.model, split, run.device, args.batch_size).logits
            on_first_rank(lambda: _write(file, _scored(part, scoring, predictor, logits, worth)))  # noqa: B023
        rows += part.batch.num_rows
        if bars is not None:
            bars("score", rows, max(share, 1e-9))
    if bars is not None:
        bars.close()
    if not rows:
        raise InputError(f"`input` (={args.input!r}) must have at least one row")
    on_first_rank(lambda: _join(partial, output, number + 1))
    return rows


def _scored(part: Part, scoring: Scoring, predictor: Predictor, logits: Array, worth: Array | None) -> pl.DataFrame:
    scores = predictor.from_logits(logits, worth).to_polars()
    kept = {name: pl.Series(part.column(name)) for name in scoring.keep}
    for name in kept:
        if name in scores.columns:
            raise InputError(f"`keep` (={name!r}) must not be the name of a column of scores: {scores.columns}")
    return pl.DataFrame(kept).hstack(scores) if kept else scores


def _job(args: argparse.Namespace, run: LoadedRun, scoring: Scoring) -> Mapping[str, object]:
    """What the scores depend on: an interrupted call is resumed only by the same one."""
    files = [[file.name, file.size] for file in scoring.files]
    calibration = None if run.calibration is None else run.calibration.method
    settings = {"keep": args.keep, "values": args.values, "calibration": calibration}
    return {"checkpoint": str(run.checkpoint), **settings, "files": files}


def _open(output: Path, partial: Path, job: Mapping[str, object]) -> None:
    if output.exists():
        raise InputError(f"`output` (={str(output)!r}) must not exist")
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"`output` (={str(output)!r}) must be a file that can be written ({error.strerror})"
        ) from error
    if not (partial / _JOB_FILE).is_file():
        write_whole(partial / _JOB_FILE, to_json(job))
    elif read_json(partial / _JOB_FILE) != job:
        raise InputError(
            f"{partial}: is of other rows or another model, and not finished; remove it, or name another `output`"
        )


def _write(file: Path, rows: pl.DataFrame) -> None:
    unfinished = file.with_suffix(".writing")
    write_parquet(rows, unfinished)
    os.replace(unfinished, file)


def _join(partial: Path, output: Path, num_parts: int) -> None:
    joined, writer = partial / "joined.parquet", None
    for number in range(num_parts):
        table = pq.read_table(partial / f"part-{number:06}.parquet")
        writer = writer or pq.ParquetWriter(joined, table.schema, compression="zstd", write_page_checksum=True)
        writer.write_table(table)
    assert writer is not None
    writer.close()
    with joined.open("rb") as handle:
        os.fsync(handle.fileno())
    os.replace(joined, output)
    shutil.rmtree(partial)


def main(argv: Sequence[str] | None = None) -> int:
    """Scores the rows, and returns status 0.

    Raises:
        InputError: if the user made a mistake.
    """
    args = parse(argv)
    with opened_run(args) as run:
        rows = predict(args, run)
        if dist.get_rank() == 0:
            print(f"{args.output}: scores of {rows:,} rows")
    return 0
