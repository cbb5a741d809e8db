"""The files of a source, and their rows: CSV, parquet, Arrow and JSON lines, in parts and hive partitions, anywhere."""

import fnmatch
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.csv
import pyarrow.fs
import pyarrow.ipc
import pyarrow.json
import pyarrow.parquet as pq

from torchrec_mtl.data.table.columns import Part
from torchrec_mtl.errors import InputError

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
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
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


def find_files(source: str | Sequence[str], format: str | None = None) -> list[SourceFile]:
    """Returns the files of a source, sorted by path.

    In a folder, names that begin with ``_`` or ``.`` are left out (``_SUCCESS``, ``.crc``), and folders named
    ``column=value`` are hive partitions.

    Args:
        source: file, folder, or glob with ``*``, ``?`` or ``[``; a local path or a URI; or several of them.
        format: format of the rows; by default, file names say it.

    Raises:
        InputError: if there is no such file, one is empty, a name does not say its format, or it cannot be reached.

    Example::

        >>> import tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp(), "dt=2026-11-01")
        >>> folder.mkdir()
        >>> _ = (folder / "part-0.csv").write_text("click\\n1\\n"), (folder / "_SUCCESS").write_text("")
        >>> [(file.format, file.partition) for file in find_files(str(folder.parent))]
        [('csv', {'dt': '2026-11-01'})]
    """
    if not isinstance(source, str):
        return [file for each in source for file in find_files(each, format)]
    filesystem, path = _resolve(source)
    is_glob = any(character in path for character in "*?[")
    base = _before_glob(path) if is_glob else path
    with _reaching(source):
        info = filesystem.get_file_info(base)
        if info.type == pa.fs.FileType.NotFound:
            raise InputError(f"{source}: no such file or folder")
        if info.type == pa.fs.FileType.File:
            infos = [info]
        else:
            infos = filesystem.get_file_info(pa.fs.FileSelector(base, recursive=True))
    prefix = source.removesuffix(path)  # of a URI
    files = []
    for each in sorted(infos, key=lambda info: info.path):
        inside = PurePosixPath(each.path).relative_to(base).parts
        if each.type != pa.fs.FileType.File or (is_glob and not _matches(each.path, path)):
            continue
        if any(name.startswith(("_", ".")) for name in inside) and not is_glob:
            continue
        name = f"{prefix}{each.path}" if prefix != source else each.path
        if not each.size:
            raise InputError(f"{name}: is empty (0 bytes); remove it if it belongs to no finished job")
        folders = PurePosixPath(each.path).parts[:-1] if is_glob else inside[:-1]
        kind, partition = format or _format_of(name), _hive_partition(folders)
        files.append(SourceFile(name, each.path, filesystem, each.size, kind, partition, each.mtime_ns))
    if not files:
        raise InputError(f"{source}: there is no file of rows")
    return files


def read_parts(file: SourceFile, columns: Sequence[str]) -> Iterator[Part]:
    """Yields the rows of a file in order, with ``columns``, or with all columns if there are none.

    Values of CSV files are text, whatever they look like: 007 stays 007.

    Raises:
        InputError: if the file is damaged or cannot be reached, or has a column that the name of its folder has too.
    """
    first, batches = 0, _READERS[file.format](file, columns)
    while True:
        with _reaching(file.name):
            batch = next(batches, None)
        if batch is None:
            return
        for name, value in file.partition.items():
            if name in batch.schema.names:
                raise InputError(
                    f"{file.name}: column {name!r} must not be in the file, since its folder's name has it"
                )
            batch = batch.append_column(name, pa.array([value] * batch.num_rows, pa.string()))
        for start in range(0, batch.num_rows, PART_ROWS):
            part = batch.slice(start, PART_ROWS)
            yield Part(part, file.name, first)
            first += part.num_rows


def _resolve(source: str) -> tuple[pa.fs.FileSystem, str]:
    if "://" not in source:
        return pa.fs.LocalFileSystem(), source
    with _reaching(source):
        found: tuple[pa.fs.FileSystem, str] = pa.fs.FileSystem.from_uri(source)
        return found


def _before_glob(path: str) -> str:
    parts = []
    for part in PurePosixPath(path).parts:
        if any(character in part for character in "*?["):
            break
        parts.append(part)
    return str(PurePosixPath(*parts)) if parts else "."


def _matches(path: str, pattern: str) -> bool:
    names, patterns = PurePosixPath(path).parts, PurePosixPath(pattern).parts
    return len(names) == len(patterns) and all(map(fnmatch.fnmatchcase, names, patterns))


def _hive_partition(folders: Sequence[str]) -> dict[str, str | None]:
    pairs = (folder.partition("=") for folder in folders if "=" in folder.strip("="))
    return {name: None if value == _NULL_PARTITION else unquote(value) for name, _, value in pairs}


def _format_of(name: str) -> str:
    path = PurePosixPath(name)
    suffix = PurePosixPath(path.stem).suffix if path.suffix in _COMPRESSED else path.suffix
    if suffix not in _FORMATS:
        raise InputError(f"{name}: its name must end with one of {list(_FORMATS)}, or `format` must say what it is")
    return _FORMATS[suffix]


@contextmanager
def _reaching(name: str) -> Iterator[None]:
    """Turns the errors of damaged files and of unreachable stores into `InputError`."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{name}: cannot be read ({reason})") from error


def _read_parquet(file: SourceFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    opened = pq.ParquetFile(file.filesystem.open_input_file(file.path), page_checksum_verification=True)
    wanted = [name for name in opened.schema_arrow.names if name in columns or not columns]
    for batch in opened.iter_batches(PART_ROWS, columns=wanted):
        yield batch.select(wanted)  # "a" has also read a column "a.b"


def _read_csv(file: SourceFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    delimiter = "\t" if file.format == "tsv" else ","
    with file.filesystem.open_input_stream(file.path, compression="detect") as stream:
        header = pa.csv.open_csv(stream, parse_options=pa.csv.ParseOptions(delimiter=delimiter)).schema.names
    text = dict.fromkeys(header, pa.string())
    with file.filesystem.open_input_stream(file.path, compression="detect") as stream:
        yield from pa.csv.open_csv(
            stream,
            read_options=pa.csv.ReadOptions(block_size=_BLOCK),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=False),
            convert_options=pa.csv.ConvertOptions(
                column_types=text,
                include_columns=[name for name in header if name in columns or not columns],
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )


def _read_arrow(file: SourceFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    opened = pa.ipc.open_file(file.filesystem.open_input_file(file.path))
    wanted = [name for name in opened.schema.names if name in columns or not columns]
    for number in range(opened.num_record_batches):
        yield opened.get_batch(number).select(wanted)


def _read_jsonl(file: SourceFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with file.filesystem.open_input_stream(file.path, compression="detect") as stream:
        for batch in pa.json.open_json(stream, read_options=pa.json.ReadOptions(block_size=_BLOCK)):
            yield batch.select([name for name in batch.schema.names if name in columns or not columns])


_READERS = {"parquet": _read_parquet, "csv": _read_csv, "tsv": _read_csv, "arrow": _read_arrow, "jsonl": _read_jsonl}
