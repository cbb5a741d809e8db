"""What ``prepare table --show`` prints: the files, the splits, the fields, and the first rows as encoded."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

import polars as pl

from torchrec_mtl.data.raw.preparation import without_progress
from torchrec_mtl.data.table import AgeInDays, ByColumn, ByTime, History, Table
from torchrec_mtl.data.table.any_id import shown_size
from torchrec_mtl.data.table.declaration import weight_column
from torchrec_mtl.data.table.fields import DeclaredField, IdField
from torchrec_mtl.data.table.prepare import FileOfSplit, Progress, files_of
from torchrec_mtl.data.table.preview import FirstRows, first_rows

WIDTH = 100  # characters of a line
_FILES = 6  # that are shown
_ROWS = 3  # that are shown
_NAME = 20  # characters of a field's name
_LEFT_OUT = ("name", "column", "of", "shares", "_")  # arguments that other columns show
_USUAL = (("pooling", "sum"), ("order", "count"), ("unknown", "own"), ("spare_rows", 0))


def show_table(table: Table, progress: Progress = without_progress) -> str:
    """Describes what preparing a declared table would do, and encodes its first rows; writes nothing.

    Args:
        table: the declaration.
        progress: function called with the stage, the rows so far and their share.

    Raises:
        InputError: as `torchrec_mtl.data.table.preview.first_rows` does.
    """
    files, first = files_of(table), first_rows(table, _ROWS, progress)
    kind = f"fitted on the first {sum(first.num_rows.values()):,} rows, of {first.source}"
    sections = [
        [f"{table.name}: {table.tasks}"],
        _files(files),
        _splits(table),
        ["fields", *aligned(_fields(table))],
        [f"ids and rows as encoded, {kind}", *_counts(first), *aligned(_rows(table, first))],
    ]
    return "\n".join(_cut(line, WIDTH) for section in sections for line in ["", *section])[1:]


def aligned(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """Returns rows of cells as lines of aligned columns.

    Example::

        >>> aligned([["user", "12"], ["id", "7"]])
        ['  user  12', '  id    7']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [indent + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _files(files: Sequence[FileOfSplit]) -> list[str]:
    shown = [*files[: _FILES - 1], *files[-1:]] if len(files) > _FILES else files
    rows = [[_from_the_end(each.file.name, 60), _size(each.file.size), each.split or ""] for each in shown]
    lines = aligned(rows)
    if len(files) > _FILES:
        lines.insert(_FILES - 1, f"  ... {len(files) - _FILES} more")
    formats = ", ".join(sorted({each.file.format for each in files}))
    total = _size(sum(each.file.size for each in files))
    return [f"source: {len(files)} file{'s'[: len(files) > 1]}, {formats}, {total}", *lines]


def _from_the_end(text: str, width: int) -> str:
    return text if len(text) <= width else "..." + text[3 - width :]


def _size(num_bytes: float) -> str:
    power = next((power for power in range(4) if num_bytes < 1024 ** (power + 1)), 4)
    return f"{num_bytes / 1024**power:,.{min(power, 1)}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def _splits(table: Table) -> list[str]:
    how = table.split
    if how is None:
        return ["splits: as the source names them"]
    if isinstance(how, ByColumn):
        return [f"splits: as column {how.column!r} says"]
    if isinstance(how, ByTime):
        times = [["train", f"before {how.valid_from}"], ["valid", f"from {how.valid_from}, before {how.test_from}"]]
        return [f"splits by the time in {table.time!r}, UTC", *aligned([*times, ["test", f"from {how.test_from}"]])]
    shares = [["train", 1 - how.valid - how.test], ["valid", how.valid], ["test", how.test]]
    return [f"splits by a hash of {how.column!r}", *aligned([[f"{n}", f"{s:.4g} of its values"] for n, s in shares])]


def _fields(table: Table) -> list[list[str]]:
    rows = [["", "kind", "reads", "table of", "arguments"]]
    for each in table.fields:
        owner = _cut(table.owner(each).name, _NAME) if isinstance(each, IdField) else "-"
        rows.append([_cut(each.name, _NAME), type(each).__name__, _cut(_reads(each), 28), owner, _arguments(each)])
    return rows


def _reads(declared: DeclaredField) -> str:
    if isinstance(declared, History):
        return f"earlier {declared.of!r}"
    column = declared.column or declared.name
    return f"age of {column.column!r}" if isinstance(column, AgeInDays) else ", ".join(map(repr, declared.columns))


def _arguments(declared: DeclaredField) -> str:
    named = [item for item in fields(declared) if item.name not in _LEFT_OUT]
    given = {item.name: getattr(declared, item.name) for item in named if getattr(declared, item.name) is not None}
    return ", ".join(f"{name}={value!r}" for name, value in given.items() if (name, value) not in _USUAL)


def _counts(first: FirstRows) -> list[str]:
    lines = [f"  of these rows: {', '.join(f'{number:,} {split}' for split, number in first.num_rows.items())}"]
    if first.num_bad:
        lines.append(
            f"  {first.num_bad:,} rows break a rule, and would stop the preparation or be put aside; the first:"
        )
        lines.append(f"  {first.first_bad}")
    return lines


def _rows(table: Table, first: FirstRows) -> list[list[str]]:
    rows = [["", "ids", *(f"row {number}, raw -> encoded" for number in range(first.encoded.height))]]
    encoded = first.encoded.to_dicts()
    names = [_cut(name, _NAME) for name in first.encoded.columns]
    width = (WIDTH - max(map(len, names)) - len("2,147,483,647")) // _ROWS - 2  # of a cell
    for each in table.fields:
        number = shown_size(first.encoder.num_embeddings(each.name)) if isinstance(each, IdField) else "-"
        columns = [each.name] if isinstance(each, IdField) else list(getattr(each, "dense", ()))
        columns += [weight_column(each.name)] if isinstance(each, IdField) and each.weights else []
        for column in columns:
            cells = [_cell(each, raw, row[column], width) for raw, row in zip(first.raw, encoded, strict=True)]
            rows.append([_cut(column, _NAME), number if column == each.name else "", *cells])
    for column in table.tasks.label_columns:
        rows.append([_cut(column, _NAME), "label", *(f"{row[column]:.0f}" for row in encoded)])
    return rows


def _cell(declared: DeclaredField, raw: Mapping[str, Any], encoded: Any, width: int) -> str:
    if isinstance(declared, History):
        return _value(encoded, width)
    value, after = raw[declared.columns[0]], _value(encoded, width // 2 - 2)
    room = width - 4 - len(after)
    is_time = isinstance(value, str) and declared.role == "time"  # its end says more
    return f"{_from_the_end(value, room) if is_time else _value(value, room)} -> {after}"


def _value(value: Any, width: int) -> str:
    if isinstance(value, (list, pl.Series)):
        listed = [_value(each, width) for each in value]
        text = f"[{', '.join(listed)}]"
        while len(text) > width and listed:  # the newest of a history are last
            listed.pop(0)
            text = f"[.. {', '.join(listed)}]"
        return _cut(text, width)
    if value is None:
        return "missing"
    if isinstance(value, datetime):
        value = f"{value:%m-%d %H:%M:%S}"
    return _cut(f"{value:.4g}" if isinstance(value, float) else str(value), width)
