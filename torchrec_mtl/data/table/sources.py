"""The files of a source, and their rows: CSV, parquet, Arrow and JSON lines, in parts and hive partitions, anywhere."""

import fnmatch
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from urllib.parse import unquote

import polars as pl
import pyarrow as pa
import pyarrow.fs

from torchrec_mtl.data.stream_files import locate
from torchrec_mtl.data.table.formats import PART_ROWS, SourceFile, format_of, read_batches
from torchrec_mtl.data.table.parts import Part, WrongLine
from torchrec_mtl.errors import InputError

_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


def find_files(source: str | Sequence[str], format: str | None = None) -> list[SourceFile]:
    """Returns the files of a source, sorted by path.

    In a folder, or where a glob does not say it, names that begin with ``_`` or ``.`` are left out (``_SUCCESS``,
    ``.crc``). Folders named ``column=value`` are hive partitions. A glob may also name folders.

    Args:
        source: file, folder, or glob with ``*``, ``?`` or ``[``; a local path or a URI, see
            `torchrec_mtl.data.stream_files.locate`, where ``?`` begins the options; or several of them.
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
    location = locate(source)
    filesystem, path = location.filesystem, location.path
    is_glob = any(character in path for character in "*?[")
    base = _before_glob(path) if is_glob else path
    with _reaching(location.name):
        info = filesystem.get_file_info(base)
        if info.type == pa.fs.FileType.NotFound:
            raise InputError(f"{location.name}: no such file or folder")
        if info.type == pa.fs.FileType.File:
            infos = [info]
        else:
            infos = filesystem.get_file_info(pa.fs.FileSelector(base, recursive=True))
    prefix = location.name.removesuffix(path)  # of a URI
    files = []
    for each in sorted(infos, key=lambda info: info.path):
        if each.type != pa.fs.FileType.File or not _matches(each.path, path):
            continue
        name = f"{prefix}{each.path}"
        if not each.size:
            raise InputError(f"{name}: is empty (0 bytes); remove it if it belongs to no finished job")
        kind, partition = format or format_of(name), _hive_partition(PurePosixPath(each.path).parts[:-1])
        files.append(SourceFile(name, each.path, filesystem, each.size, kind, partition, each.mtime_ns))
    if not files:
        raise InputError(f"{location.name}: there is no file of rows")
    return files


def read_parts(file: SourceFile, columns: Sequence[str], wrong: list[WrongLine] | None = None) -> Iterator[Part]:
    """Yields the rows of a file in order, with ``columns``, or with all columns if there are none.

    Values of CSV files are text, whatever they look like: 007 stays 007.

    Args:
        file: the file.
        columns: the columns.
        wrong: list that gets the lines of a CSV file that do not have as many values as its header; without it, the
            first one is refused.

    Raises:
        InputError: if there is such a line, the file is damaged or cannot be reached, or it has a column that the name
            of its folder has too.
    """
    first, lines = 0, [] if wrong is None else wrong
    batches = read_batches(file, [name for name in columns if name not in file.partition], lines)
    _check_unchanged(file)
    while True:
        with _reaching(file.name):
            batch = next(batches, None)
        if lines and wrong is None:
            raise InputError(f"{file.name}: {lines[0]}")
        if batch is None:
            _check_unchanged(file)
            return
        for name, value in file.partition.items():
            batch = batch.append_column(name, pa.array([value] * batch.num_rows, pa.string()))
        for start in range(0, batch.num_rows, PART_ROWS):
            part = batch.slice(start, PART_ROWS)
            yield Part(part, file.name, first, wrong=lines)
            first += part.num_rows


def _check_unchanged(file: SourceFile) -> None:
    with _reaching(file.name):
        info = file.filesystem.get_file_info(file.path)
    precision = (
        1 if isinstance(file.filesystem, pa.fs.LocalFileSystem) else 10**9
    )  # an object store gives whole seconds
    times = [(time or 0) // precision for time in (info.mtime_ns, file.changed)]
    if info.size != file.size or times[0] != times[1]:
        raise InputError(f"{file.name}: was changed while it was read; wait until it is whole, and prepare again")


def _before_glob(path: str) -> str:
    parts = []
    for part in PurePosixPath(path).parts:
        if any(character in part for character in "*?["):
            break
        parts.append(part)
    return str(PurePosixPath(*parts)) if parts else "."


def _matches(path: str, pattern: str) -> bool:
    """Whether ``pattern`` names a file or a folder above it, with no hidden name that it does not ask for."""
    names, patterns = PurePosixPath(path).parts, PurePosixPath(pattern).parts
    patterns += ("*",) * (len(names) - len(patterns))
    return len(names) == len(patterns) and all(
        fnmatch.fnmatchcase(name, each) and (name[0] not in "_." or each[0] == name[0])
        for name, each in zip(names, patterns, strict=True)
    )


def _hive_partition(folders: Sequence[str]) -> dict[str, str | None]:
    pairs = (folder.partition("=") for folder in folders if "=" in folder.strip("="))
    return {name: None if value == _NULL_PARTITION else unquote(value) for name, _, value in pairs}


@contextmanager
def _reaching(name: str) -> Iterator[None]:
    """Turns the errors of damaged files and of unreachable stores into `InputError`."""
    try:
        yield
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{name}: cannot be read ({reason})") from error
