"""Guesses a declaration from the rows of a source."""

import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from torchrec_mtl.argument_types import checked
from torchrec_mtl.data.raw.preparation import without_progress
from torchrec_mtl.data.schema import SPLITS
from torchrec_mtl.data.table.declaration import ByHash, ByTime, Table
from torchrec_mtl.data.table.fields import AgeInDays, DeclaredField
from torchrec_mtl.data.table.formats import SourceFile
from torchrec_mtl.data.table.ids import History, TimeOf, Vocabulary
from torchrec_mtl.data.table.infer.all_rows import AllRows, time_split
from torchrec_mtl.data.table.infer.columns import EVENTS, FEW_TEXTS, Column, look_at
from torchrec_mtl.data.table.infer.text import SPLIT, declaration_text
from torchrec_mtl.data.table.numbers import Bins, Dense
from torchrec_mtl.data.table.parts import Part
from torchrec_mtl.data.table.prepare import splits_by_hash
from torchrec_mtl.data.table.sources import find_files, read_parts
from torchrec_mtl.errors import InputError, check_at_least, not_one_of

_HISTORY = 20  # values


@checked
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
    whole = AllRows(labels, _time(columns), _group(columns, labels))
    whole.read(files, progress)
    draft = _Draft(source, part, columns, whole)
    return declaration_text(*draft.table(), draft.left_out)


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
        if not columns[name].is_label:
            raise InputError(f"{source}: label column {name!r} must hold 0 and 1 in every row")
    if tasks:
        return [columns[name] for name in dict.fromkeys(tasks)]
    binary = [column for column in columns.values() if column.is_label]
    named = [column for column in binary if column.event is not None]
    sure = [column for column in named if EVENTS[column.event or 0] not in ("label", "target")]
    if not named:
        found = [column.name for column in binary]
        which = f"of those of 0 and 1, {found}, none has" if found else "none holds 0 and 1 in every row and has"
        raise InputError(
            f"{source}: {which} the name of an event (click, cart, buy, ...): name the label columns with --tasks"
        )
    return sure or named


def _time(columns: dict[str, Column]) -> Column | None:
    times = [column for column in columns.values() if column.kind == "time" and not column.is_list]
    known = [column for column in times if not column.flat.null_count and column.time_rank < 3]
    return min(known, key=lambda column: column.time_rank, default=None)


def _group(columns: dict[str, Column], labels: Sequence[Column]) -> Column | None:
    users = [column for column in columns.values() if column.user_rank is not None and column.is_key]
    repeated = [column for column in users if not column.flat.null_count and column.num_distinct < len(column.flat)]
    return min(
        (column for column in repeated if column not in labels), key=lambda each: each.user_rank or 0, default=None
    )


class _Draft:
    """The declaration as it is put together, with a comment for each field."""

    def __init__(self, source: str, part: Part, columns: dict[str, Column], whole: AllRows) -> None:
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
            self.fields.append((declared_id, f"{column.num_distinct:,} {what}{_rows(column)}"))
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
            if column.time_rank == 0:
                return f"another time of the row, beside {self.time.name}"
            other = column.unit != self.time.unit and not pa.types.is_temporal(self.part.column(column.name).type)
            return "a time in another unit" if other else ""
        if column.is_binary and column.event is not None:  # as a field, it might tell what is to be predicted
            return "0 and 1, as an event: a task if no row lacks it, a field if it is known before the row"
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
        items = [each for each in self.columns.values() if each.item_rank is not None and each.is_key]
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
        by_time = time_split(self.whole.minutes) if self.time is not None else None
        if by_time is not None:
            return by_time
        keys = [each for each in self.columns.values() if each.is_key and each.name not in self.tasks.names]
        keys.sort(key=lambda each: (each is not self.whole.group, -each.num_distinct))
        for share in (0.1, 0.25):
            for key in keys:
                split = ByHash(key.name, share, share)
                if len(np.unique(splits_by_hash(split, key.flat))) == len(SPLITS):
                    return split, ""
        rule = "must have a column with the times of its rows, or one with many texts or integers, to be split by it"
        raise InputError(f"{self.source}: {rule}")

    def table(self) -> tuple[Table, dict[str, str]]:
        """The declaration, and a comment for each field and for "split"."""
        split, of_split = self._split()
        time, group = self.time, self.whole.group
        table = Table(
            _name(self.source),
            self.source,
            self.tasks,
            [each for each, _ in self.fields],
            split=split,
            time=None if time is None else time.name,
            time_unit=None if time is None else time.unit,
            group=None if group is None else group.name,
        )
        return table, {**{each.name: comment for each, comment in self.fields}, SPLIT: of_split}


def _rows(column: Column) -> str:
    """Of how many values the comment speaks, and how many of them are missing."""
    share = column.flat.null_count / max(1, len(column.flat))
    question = "" if column.event is None else "; is it known before the row?"
    of_rows = f" among {len(column.flat):,} in lists" if column.is_list else f" in {len(column.flat):,} rows"
    return of_rows + (f", {100 * share:.1f} % missing" if share else "") + question


def _name(source: str) -> str:
    parts = [part for part in PurePosixPath(source.partition("://")[2] or source).parts if not set(part) & set("*?[")]
    name = re.sub(r"[^\w-]+", "_", parts[-1].partition(".")[0] if parts else "").strip("_")
    return name[:50] or "table"
