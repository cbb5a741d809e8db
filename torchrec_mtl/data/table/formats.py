"""Files of rows: parquet, CSV, Arrow and JSON lines, each as record batches."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.fs
import pyarrow.ipc
import pyarrow.parquet as pq

from torchrec_mtl.data import parquet
from torchrec_mtl.data.table.parts import WrongLine
from torchrec_mtl.errors import InputError, shown

PART_ROWS = 2**18  # rows in memory at once
_FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
_COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
_BLOCK = 2**24  # bytes of text read at once


@dataclass(frozen=True)
class SourceFile:
    """A file of a source.

    Args:
        name: path or URI in messages.
        path: path on its file system.
        filesystem: where the file is.
        size: size in bytes.
        format: format of its rows.
        partition: hive partition columns with their value, None for a missing one.
        changed: when the file was changed last, in nanoseconds since 1970; None if its store does not say.
    """

    name: str
    path: str
    filesystem: pa.fs.FileSystem
    size: int
    format: str
    partition: dict[str, str | None] = field(default_factory=dict)
    changed: int | None = None


def format_of(name: str) -> str:
    """The format that the name of a file says."""
    path = PurePosixPath(name)
    suffix = PurePosixPath(path.stem).suffix if path.suffix in _COMPRESSED else path.suffix
    if suffix not in _FORMATS:
        raise InputError(f"{name}: its name must end with one of {list(_FORMATS)}, or `format` must say what it is")
    return _FORMATS[suffix]


def read_batches(
    file: SourceFile, columns: Sequence[str], wrong: list[WrongLine] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a file in order, with ``columns``, or with all columns if there are none.

    Args:
        file: the file.
        columns: the columns.
        wrong: list that gets the lines of a CSV file that are no rows, before or with the rows around them.

    Raises:
        InputError: if a column is missing, there several times or in the name of the folder, or a line is not JSON.
    """
    if file.format in ("csv", "tsv"):
        return _read_csv(file, columns, [] if wrong is None else wrong)
    return _READERS[file.format](file, columns)


def _wanted(file: SourceFile, names: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Returns the columns to read of those in a file: ``columns``, or all if there are none."""
    for name in file.partition:
        if name in names:
            raise InputError(f"{file.name}: column {name!r} must not be in the file, since its folder's name has it")
    for name in columns:
        if names.count(name) != 1:
            what = f"is there {names.count(name)} times" if name in names else "is missing"
            raise InputError(f"{file.name}: column {name!r} {what}; the columns are {[*names, *file.partition]}")
    return [name for name in names if name in columns or not columns]


def _read_parquet(file: SourceFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with file.filesystem.open_input_file(file.path) as stream:
        opened = pq.ParquetFile(stream, page_checksum_verification=True)
        wanted = _wanted(file, opened.schema_arrow.names, columns)
        for batch in parquet.read_batches(opened, PART_ROWS, columns=wanted):
            yield batch.select(wanted)  # of "a", it may also read a column "a.b"


def _read_csv(file: SourceFile, columns: Sequence[str], wrong: list[WrongLine]) -> Iterator[pa.RecordBatch]:
    def skip(line: pa.csv.InvalidRow) -> str:
        row = line.number - 2  # the header is line 1
        wrong.append(WrongLine(row, line.expected_columns, line.actual_columns, line.text))
        return "skip"

    parse = pa.csv.ParseOptions(delimiter="\t" if file.format == "tsv" else ",", newlines_in_values=True)
    parse.invalid_row_handler = lambda line: "skip"
    with file.filesystem.open_input_stream(file.path, compression="detect") as stream:
        header = pa.csv.open_csv(stream, parse_options=parse).schema.names
    parse.invalid_row_handler = skip
    with file.filesystem.open_input_stream(file.path, compression="detect") as stream:
        yield from pa.csv.open_csv(
            stream,
            read_options=pa.csv.ReadOptions(block_size=_BLOCK, use_threads=False),  # or lines have no number
            parse_options=parse,
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()),
                include_columns=_wanted(file, header, columns),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )


def _read_arrow(file: SourceFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with file.filesystem.open_input_file(file.path) as stream:
        opened = pa.ipc.open_file(stream)
        wanted = _wanted(file, opened.schema.names, columns)
        for number in range(opened.num_record_batches):
            yield opened.get_batch(number).select(wanted)


def _read_jsonl(file: SourceFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """A column that some lines do not have is missing there; Arrow's reader would take dates in strings for times."""
    seen: dict[str, None] = {}
    num_rows = 0
    with file.filesystem.open_input_stream(file.path, compression="detect") as stream:
        for lines in _blocks_of_lines(stream):
            try:
                rows = pl.read_ndjson(lines, infer_schema_length=None)
            except pl.exceptions.PolarsError as error:
                raise _bad_line(file, lines, num_rows, error) from error
            num_rows += rows.height
            seen |= dict.fromkeys(rows.columns)
            rows = rows.with_columns(pl.lit(None).alias(name) for name in columns if name not in rows.columns)
            rows = rows.select(columns or rows.columns).with_columns(pl.col(pl.Int128).cast(pl.String))
            yield rows.to_arrow().combine_chunks().to_batches()[0]
    _wanted(file, list(seen), columns)


def _blocks_of_lines(stream: pa.NativeFile) -> Iterator[bytes]:
    rest = b""
    while block := stream.read(_BLOCK):
        whole, newline, rest_of_block = block.rpartition(b"\n")
        rest += whole + newline
        if newline and rest.strip():
            yield rest
        rest = rest_of_block if newline else rest + rest_of_block
    if rest.strip():
        yield rest


def _bad_line(file: SourceFile, lines: bytes, first_row: int, error: Exception) -> InputError:
    for row, line in enumerate(filter(bytes.strip, lines.splitlines())):
        try:
            is_object = isinstance(json.loads(line), dict)
        except ValueError:
            is_object = False
        if not is_object:
            text = repr(line.decode(errors="replace"))[:60]
            return InputError(
                f"{file.name}: row {first_row + row} (counted from 0): {shown(text)} must be a JSON object"
            )
    rule = f"values of a column must be of one kind, from row {first_row} on"
    return InputError(f"{file.name}: {rule} ({shown(error)})")


_READERS = {"parquet": _read_parquet, "arrow": _read_arrow, "jsonl": _read_jsonl}
