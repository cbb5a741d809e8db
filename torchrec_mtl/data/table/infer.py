"""Writes a first declaration of a table, guessed from its first rows, to be edited."""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.raw.preparation import without_progress
from torchrec_mtl.data.schema import SPLITS
from torchrec_mtl.data.table.columns import Part, read_values
from torchrec_mtl.data.table.declaration import ByHash, ByTime, Table
from torchrec_mtl.data.table.fields import AgeInDays, DeclaredField
from torchrec_mtl.data.table.guesses import EVENTS, FEW_TEXTS, Column, look_at
from torchrec_mtl.data.table.ids import History, TimeOf, Vocabulary
from torchrec_mtl.data.table.numbers import Bins, Dense
from torchrec_mtl.data.table.prepare import splits_by_hash
from torchrec_mtl.data.table.sources import SourceFile, find_files, read_parts
from torchrec_mtl.errors import InputError, check_at_least, not_one_of
from torchrec_mtl.tasks import Task, TaskForest

WIDTH = 100  # characters of a line
_MINUTE = 60 * 10**6  # microseconds
_HISTORY = 20  # values


def infer_table(
    source: str,
    *,
    tasks: Sequence[str] = (),
    num_rows: int = 100_000,
    progress: Callable[[str, int, float], None] = without_progress,
) -> str:
    """Returns the text of a Python file that declares a table, guessed from its rows.

    Kinds of columns are guessed from the first rows; which task needs which, and the times between splits, from all.

    Args:
        source: file, glob or folder, as of a `Table`.
        tasks: label columns; by default those of 0 and 1 that have the name of an event.
        num_rows: number of rows from which kinds are guessed.
        progress: function called with the stage, the rows so far and their share.

    Raises:
        InputError: if a file cannot be read, or no label, field or split can be found.

    Example::

        >>> import tempfile, polars as pl
        >>> file = f"{tempfile.mkdtemp()}/shop.csv"
        >>> rows = {"user": [f"u{n}" for n in range(50)] * 2, "price": [n / 3 for n in range(100)], "buy": [0, 1] * 50}
        >>> pl.DataFrame(rows).write_csv(file)
        >>> print(infer_table(file).replace(file, "shop.csv"), end="")
        from torchrec_mtl import Bins, ByHash, Table, TaskChain, Vocabulary
        TABLE = Table("shop", "shop.csv", TaskChain(["buy"]), fields=[
            Vocabulary("user"),  # 50 texts in 100 rows
            Bins("price"),  # 0 to 33 in 100 rows
        ], group="user", split=ByHash("user"))
    """
    check_at_least(1, num_rows=num_rows)
    files = find_files(source)
    part = _first_rows(source, files, num_rows)
    columns = {name: look_at(part, name) for name in dict.fromkeys(part.batch.schema.names)}
    labels = _labels(source, columns, tasks)
    time, group = _time(columns, labels), _group(columns, labels)
    whole = _Whole(labels, time, group)
    whole.read(files, progress)
    draft = _Draft(source, part, columns, whole)
    return draft.text()


def _first_rows(source: str, files: Sequence[SourceFile], num_rows: int) -> Part:
    batches, missing = [], num_rows
    for file in files:
        for part in read_parts(file, []):
            batches.append(pa.Table.from_batches([part.batch.slice(0, missing)]))
            missing -= batches[-1].num_rows
            if not missing:
                break
        if not missing:
            break
    try:
        table = pa.concat_tables(batches, promote_options="permissive").combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(f"{source}: files must have the same columns ({' '.join(str(error).split())})") from error
    if not table.num_rows:
        raise InputError(f"`source` (={source!r}) must have at least one row")
    return Part(table.to_batches()[0], source)


def _labels(source: str, columns: dict[str, Column], tasks: Sequence[str]) -> list[Column]:
    for name in tasks:
        if name not in columns:
            raise InputError(not_one_of("label column", name, columns))
        if not _is_label(columns[name]):
            raise InputError(f"{source}: label column {name!r} must hold 0 and 1 in every row")
    if tasks:
        return [columns[name] for name in dict.fromkeys(tasks)]
    binary = [column for column in columns.values() if _is_label(column)]
    named = [column for column in binary if column.event is not None]
    sure = [column for column in named if EVENTS[column.event or 0] not in ("label", "target")]
    if not named:
        found = [column.name for column in binary]
        which = f"of those of 0 and 1, {found}, none has" if found else "none holds 0 and 1 in every row and has"
        raise InputError(
            f"{source}: {which} the name of an event (click, cart, buy, ...): name the label columns with --tasks"
        )
    return sure or named


def _is_label(column: Column) -> bool:
    if column.kind not in ("integer", "number") or column.is_list or column.flat.null_count:
        return False
    least, most = pc.min_max(column.flat).as_py().values()
    return bool(least in (0, 1) and most in (0, 1) and column.num_distinct <= 2)


def _time(columns: dict[str, Column], labels: Sequence[Column]) -> Column | None:
    times = [column for column in columns.values() if column.kind == "time" and not column.is_list]
    known = [column for column in times if not column.flat.null_count and column.time_rank < 3]
    return min(known, key=lambda column: column.time_rank, default=None)


def _group(columns: dict[str, Column], labels: Sequence[Column]) -> Column | None:
    users = [column for column in columns.values() if column.user_rank is not None and _is_key(column)]
    repeated = [column for column in users if not column.flat.null_count and column.num_distinct < len(column.flat)]
    return min(
        (column for column in repeated if column not in labels), key=lambda each: each.user_rank or 0, default=None
    )


def _is_key(column: Column) -> bool:
    return column.kind in ("key", "integer") and not column.is_list and column.separator is None


@dataclass
class _Whole:
    """What all rows say, of the few columns that decide how the table is used."""

    labels: Sequence[Column]
    time: Column | None
    group: Column | None
    num_rows: int = 0
    minutes: Counter[int] = field(default_factory=Counter)
    without: Array = field(init=False)  # [T, T] rows in which the first happened without the second
    happened: Array = field(init=False)  # [T] rows in which it happened

    def read(self, files: Sequence[SourceFile], progress: Callable[[str, int, float], None]) -> None:
        names = [each.name for each in (*self.labels, self.time, self.group) if each is not None]
        self.without = np.zeros((len(self.labels), len(self.labels)), np.int64)
        self.happened = np.zeros(len(self.labels), np.int64)
        size, total = 0, sum(file.size for file in files)
        for file in files:
            for part in read_parts(file, names):
                columns = [read_values(part, label.name, "label").flat.fill_null(0) for label in self.labels]
                happened = np.stack([np.asarray(column.to_numpy(zero_copy_only=False)) for column in columns], axis=1)
                self.happened += happened.sum(axis=0).astype(np.int64)
                self.without += (happened.T @ (1 - happened)).astype(np.int64)
                if self.time is not None:
                    times = read_values(part, self.time.name, "time", unit=self.time.unit).flat.drop_null()
                    minutes, counts = np.unique(times.to_numpy() // _MINUTE, return_counts=True)
                    self.minutes.update(dict(zip(minutes.tolist(), counts.tolist(), strict=True)))
                self.num_rows += part.batch.num_rows
                progress("labels and times", self.num_rows, size / total)
            size += file.size

    def forest(self, source: str) -> tuple[TaskForest, list[str]]:
        """The tasks, each after the rarest that always happened with it, and columns that are the same in all rows."""
        constant = [
            each.name for each, rows in zip(self.labels, self.happened, strict=True) if rows in (0, self.num_rows)
        ]
        order = [place for place, each in enumerate(self.labels) if each.name not in constant]
        order.sort(key=lambda place: (-self.happened[place], self.labels[place].event or 0, place))
        if not order:
            raise InputError(f"{source}: label columns {constant} must have 0 in some rows and 1 in others")
        made: list[Task] = []
        for number, place in enumerate(order):
            needed = [before for before in order[:number] if not self.without[place, before]]
            after = self.labels[needed[-1]].name if needed else None
            made.append(Task(self.labels[place].name, after=after))
        return TaskForest(*made), constant


class _Draft:
    """The declaration as it is put together, with a comment for each field."""

    def __init__(self, source: str, part: Part, columns: dict[str, Column], whole: _Whole) -> None:
        self.source, self.part, self.columns, self.whole = source, part, columns, whole
        self.fields: list[tuple[DeclaredField, str]] = []
        self.left_out: list[str] = []
        self.tasks, constant = whole.forest(source)
        self.left_out += [f"{name} (a label that is the same in all rows)" for name in constant]
        self.time = whole.time
        self.used = {*columns, *self.tasks.names}
        labels = [label.name for label in whole.labels]
        for column in columns.values():
            if column.name not in labels and column is not self.time:
                self._add(column)
        self._add_times_and_histories()
        if not self.fields:
            raise InputError(f"{source}: no column can be a field: {', '.join(self.left_out)}")

    def _add(self, column: Column) -> None:
        reason = column.reason if column.kind is None else self._useless(column)
        if reason:
            self.left_out.append(f"{column.name} ({reason})")
        elif column.kind == "time":
            declared = Bins(column.name, column=AgeInDays(column.name))
            self.fields.append((declared, "a time: its age at the row's time"))
        elif column.is_id:
            few = column.num_distinct <= FEW_TEXTS
            declared_id = Vocabulary(column.name, min_count=1 if few else 2, separator=column.separator)
            what = "texts" if column.kind == "key" else "integers"
            self.fields.append(
                (declared_id, f"{'lists of ' * column.is_list}{column.num_distinct:,} {what}{_rows(column)}")
            )
        else:
            least, most = pc.min_max(column.flat).as_py().values()
            share = least >= 0 and most <= 1 and not column.is_list and f"{column.name}_missing" not in self.used
            number = Dense(column.name) if share else Bins(column.name)
            self.fields.append((number, f"{least:.4g} to {most:.4g}{_rows(column)}"))

    def _useless(self, column: Column) -> str:
        """Why a column is of no use, "" if it is of use."""
        rows, distinct = len(column.flat), column.num_distinct
        if column.kind == "time":
            if self.time is None or column.is_list:
                return "a time, and no column is the row's time"
            if column.unit != self.time.unit and not pa.types.is_temporal(self.part.column(column.name).type):
                return "a time in another unit"
            return "the row's day" if column.time_rank == 0 else ""
        if distinct <= 1 and not column.flat.null_count:
            return "one value in all rows"
        if distinct == rows > 50 and column.is_id and not column.is_list and column is not self.whole.group:
            return "another value in every row"
        return ""

    def _add_times_and_histories(self) -> None:
        time, group = self.time, self.whole.group
        if time is None:
            return
        days_alone = all(minute % 1440 == 0 for minute in self.whole.minutes)
        name, part = ("weekday", "weekday") if days_alone else ("hour", "hour")
        self.fields.append((TimeOf(self._new(name), part, column=time.name), "UTC"))  # type: ignore[arg-type]
        fields = {each.name for each, _ in self.fields if isinstance(each, Vocabulary)}
        items = [each for each in self.columns.values() if each.item_rank is not None and _is_key(each)]
        items = [each for each in items if each.name in fields and each is not group]
        if group is not None and items:
            item = min(items, key=lambda each: each.item_rank or 0).name
            history = History(self._new(f"recent_{item}"), item, last=_HISTORY)
            self.fields.append((history, f"of the same {group.name}, before the row"))

    def _new(self, name: str) -> str:
        while name in self.used:
            name += "_"
        self.used.add(name)
        return name

    def _split(self) -> tuple[ByTime | ByHash, str]:
        by_time = _time_split(self.whole.minutes) if self.time is not None else None
        if by_time is not None:
            return by_time
        keys = [each for each in self.columns.values() if _is_key(each) and each.name not in self.tasks.names]
        keys.sort(key=lambda each: (each is not self.whole.group, -each.num_distinct))
        for share in (0.1, 0.25):
            for key in keys:
                split = ByHash(key.name, share, share)
                if len(np.unique(splits_by_hash(split, key.flat))) == len(SPLITS):
                    return split, ""
        rule = "must have a column with the times of its rows, or one with many texts or integers, to be split by it"
        raise InputError(f"{self.source}: {rule}")

    def text(self) -> str:
        """The text of the file."""
        split, of_split = self._split()
        given = {"time": self.time and self.time.name, "time_unit": self.time and self.time.unit}
        given["group"] = self.whole.group and self.whole.group.name
        declared = [each for each, _ in self.fields]
        Table(_name(self.source), self.source, self.tasks, declared, split=split, **given)  # type: ignore[arg-type]
        tasks = _tasks(self.tasks)
        arguments = [_quoted(_name(self.source)), _quoted(self.source), tasks]
        kinds = {type(each).__name__ for each in (*declared, split)} | {"Table", *re.findall(r"\bTask\w*(?=\()", tasks)}
        kinds |= {"AgeInDays" for each in declared if isinstance(each.column, AgeInDays)}
        lines = _imports(sorted(kinds))
        lines += _wrapped("TABLE = Table(", [*arguments, "fields=["], "")
        lines += [_with_comment(f"    {_code(each)},", comment) for each, comment in self.fields]
        rest = [f"{name}={_quoted(str(value))}" for name, value in given.items() if value is not None]
        *more, last = _wrapped("], ", [*rest, f"split={_code(split)}"], ")")
        lines += [*more, _with_comment(last, of_split)]
        if self.left_out:
            lines += _comment(f"left out: {', '.join(self.left_out)}")
        return "\n".join(lines) + "\n"


def _rows(column: Column) -> str:
    """Of how many values the comment speaks, and how many of them are missing."""
    share = column.flat.null_count / max(1, len(column.flat))
    of_rows = f" in {len(column.flat):,} {'listed' if column.is_list else 'rows'}"
    return of_rows + (f", {100 * share:.1f} % missing" if share else "")


def _time_split(minutes: Counter[int]) -> tuple[ByTime, str] | None:
    """Splits at times near 80 % and 90 % of the rows, at midnight if that is near enough; None if there are too few."""
    known = np.array(sorted(minutes), np.int64)
    counts = np.array([minutes[minute] for minute in known.tolist()], np.int64)
    for step, tolerance in ((1440, 0.1), (60, 0.1), (1, 1.0)):
        starts, first = np.unique(known // step * step, return_index=True)
        shares = np.concatenate([[0], counts.cumsum()])[first] / max(1, counts.sum())  # of rows before each start
        if len(starts) < 3:
            continue
        valid = 1 + int(np.abs(shares[1:-1] - 0.8).argmin())
        test = valid + 1 + int(np.abs(shares[valid + 1 :] - 0.9).argmin())
        if abs(shares[valid] - 0.8) > tolerance or abs(shares[test] - 0.9) > tolerance:
            continue
        try:
            edges = [datetime(1970, 1, 1) + timedelta(minutes=int(starts[place])) for place in (valid, test)]
        except OverflowError:
            return None
        written = [f"{each:%Y-%m-%d}" if step == 1440 else each.isoformat(timespec="minutes") for each in edges]
        parts = np.diff([0, shares[valid], shares[test], 1])
        return ByTime(written[0], written[1]), f"{', '.join(f'{100 * part:.0f}' for part in parts)} % of the rows"
    return None


def _name(source: str) -> str:
    parts = [part for part in PurePosixPath(source.partition("://")[2] or source).parts if not set(part) & set("*?[")]
    name = re.sub(r"[^\w-]+", "_", parts[-1].partition(".")[0] if parts else "").strip("_")
    return name[:50] or "table"


def _tasks(tasks: TaskForest) -> str:
    if tasks.is_chain:
        return f"TaskChain([{', '.join(map(_quoted, tasks.names))}])"
    made = [_quoted(each.name) + (f", after={_quoted(each.after)}" if each.after else "") for each in tasks.tasks]
    return f"TaskForest({', '.join(f'Task({each})' for each in made)})"


def _code(made: Any) -> str:
    """A dataclass as Python, without defaults; what may be given by position is."""
    written = []
    for item in sorted(fields(made), key=lambda item: item.kw_only is True):
        value = getattr(made, item.name)
        if value != item.default:
            text = (
                _quoted(value)
                if isinstance(value, str)
                else _code(value)
                if isinstance(value, AgeInDays)
                else repr(value)
            )
            written.append(f"{item.name}={text}" if item.kw_only else text)
    return f"{type(made).__name__}({', '.join(written)})"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _with_comment(code: str, comment: str) -> str:
    whole = f"{code}  # {comment}"
    return whole if comment and comment.isprintable() and len(whole) <= WIDTH else code


def _comment(text: str) -> list[str]:
    lines = [""]
    for word in "".join(each if each.isprintable() else "?" for each in text).split():
        if lines[-1] and len(lines[-1]) + len(word) > WIDTH - 3:
            lines.append("")
        lines[-1] += f" {word}"
    return [f"#{line}" for line in lines]


def _imports(names: Sequence[str]) -> list[str]:
    line = f"from torchrec_mtl import {', '.join(names)}"
    return [line] if len(line) <= WIDTH else _wrapped("from torchrec_mtl import (", names, ")")


def _wrapped(start: str, items: Sequence[str], end: str) -> list[str]:
    """Items between ``start`` and ``end`` in one line, or in several where it would be too long."""
    lines = [start]
    for number, item in enumerate(items, start=1):
        item += end if number == len(items) else ", "
        if len(lines[-1]) + len(item.rstrip()) > WIDTH:
            lines.append("    ")
        lines[-1] += item
    return [line.rstrip() for line in lines]
