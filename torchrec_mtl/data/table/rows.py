"""Reads the columns of raw rows, as a declared table says."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.raw.hashes import finalise, to_unit_interval
from torchrec_mtl.data.schema import SPLITS
from torchrec_mtl.data.table.columns import read_column, read_values
from torchrec_mtl.data.table.declaration import ByColumn, ByHash, Table
from torchrec_mtl.data.table.delays import read_label_times
from torchrec_mtl.data.table.fields import IdField
from torchrec_mtl.data.table.hashes import stable_hashes
from torchrec_mtl.data.table.ids import History, is_null
from torchrec_mtl.data.table.parts import Part, Values
from torchrec_mtl.tasks import Task, TaskForest


@dataclass
class TypedRows:
    """Raw rows whose columns have been read: nothing about them can be wrong any more.

    Attributes:
        part: where the rows come from.
        values: values of each field, by name; histories only where the rows bring them.
        weights: weights of each weighted field's ids.
        time: time [N], int64 microseconds; None if the table has none.
        groups: values of the column of groups.
        labels: label columns and their weight columns, float32 [N].
        key: values of the column by which rows are split.
        label_times: time of each delayed task, int64 [N] microseconds; see `read_label_times`.
    """

    part: Part
    values: dict[str, Values] = field(default_factory=dict)
    weights: dict[str, Array] = field(default_factory=dict)
    time: Array | None = None
    groups: pa.Array | None = None
    labels: dict[str, Array] = field(default_factory=dict)
    key: pa.Array | None = None
    label_times: dict[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.part.batch.num_rows

    def group_numbers(self) -> Array:
        """Returns a number [N] for each row's group, int64: the group itself, or the hash of a string."""
        assert self.groups is not None
        if pa.types.is_integer(self.groups.type):
            return np.asarray(self.groups.to_numpy(zero_copy_only=False))
        return (stable_hashes(self.groups) >> np.uint64(1)).astype(np.int64)

    def take(self, rows: Array) -> "TypedRows":
        """Returns the rows where the mask [N] is True."""
        if rows.all():
            return self
        weights = {name: each[self.values[name].of_rows(rows)] for name, each in self.weights.items()}
        return TypedRows(
            Part(self.part.batch.filter(pa.array(rows)), self.part.source, self.part.first_row, self.part.zoned),
            {name: values.take(rows) for name, values in self.values.items()},
            weights,
            None if self.time is None else self.time[rows],
            None if self.groups is None else self.groups.filter(pa.array(rows)),
            {name: labels[rows] for name, labels in self.labels.items()},
            None if self.key is None else self.key.filter(pa.array(rows)),
            {name: times[rows] for name, times in self.label_times.items()},
        )


def read_rows(table: Table, part: Part, *, labels: bool = True, brought: Sequence[str] = ()) -> TypedRows:
    """Reads the columns of raw rows, and marks the bad ones in ``part``.

    Args:
        table: the declaration.
        part: the rows.
        labels: whether the rows have labels, weights and the column by which they are split.
        brought: names of the histories that the rows bring.

    Raises:
        InputError: if a column is missing or of a type that cannot hold such values.
    """
    rows = TypedRows(part)
    if table.time is not None and (labels or table.needs_time):
        time = read_column(part, table.time, "time", unit=table.time_unit)
        _reject_missing(part, table.time, time, "time")
        rows.time = time.fill_null(0).to_numpy(zero_copy_only=False)
    for declared in table.fields:
        if isinstance(declared, History):
            if declared.name in brought:
                rows.values[declared.name] = _read_brought(table, declared, part)
            continue
        rows.values[declared.name] = values = declared.read(part, rows.time, table.time_unit)
        if isinstance(declared, IdField):
            values = table.owner(declared).checked(values, part, declared.columns[0])
            rows.values[declared.name] = values.as_lists() if declared.weights else values
        if isinstance(declared, IdField) and declared.weights:
            rows.weights[declared.name] = _read_weights(declared, declared.weights, rows)
    if labels:
        _read_labels(table, rows)
    return rows


def _read_brought(table: Table, declared: History, part: Part) -> Values:
    owner = table.owner(declared)
    values = read_values(part, declared.name, owner.role, unit=table.time_unit, separator=declared.separator).as_lists()
    if values.offsets is None:
        raise part.wrong_type(declared.name, f"lists of {declared.of!r}, newest last", values.flat.type)
    return owner.checked(values, part, declared.name)


def _read_weights(declared: IdField, column: str, rows: TypedRows) -> Array:
    part, values = rows.part, rows.values[declared.name]
    weights = read_values(part, column, "number", separator=declared.separator).as_lists()
    if weights.offsets is None or values.offsets is None:
        raise part.wrong_type(column, f"lists, as field {declared.name!r} does", part.column(column).type)
    lengths = np.diff(weights.offsets)
    differ = lengths != np.diff(values.offsets)
    rule = f"must have as many weights as {declared.name!r} has ids, not {{}}"
    part.reject(column, np.flatnonzero(differ), rule, lambda row: int(lengths[row]))
    missing, _ = weights.first_of_rows(is_null(weights.flat))
    part.reject(column, missing, "weight must not be missing", lambda row: None)
    chosen, numbers = values.of_rows(~differ), np.ones(len(values.flat), np.float32)
    numbers[chosen] = weights.flat.fill_null(0).cast(pa.float32()).to_numpy()[weights.of_rows(~differ)]
    return numbers  # the other rows are put aside: any weights do, of the right number


def _read_label(task: Task, tasks: TaskForest, rows: TypedRows) -> Array:
    part, column = rows.part, task.label_column
    labels = read_column(part, column, "label" if task.is_binary else "number")
    missing, rule = is_null(labels), "label must not be missing, unless its weight is 0"
    if task.weight_column is not None:
        missing &= rows.labels[task.weight_column] > 0
    if not task.is_binary and task.after is not None:
        missing &= rows.labels[tasks.tasks[tasks.index(task.after)].label_column] == 1
        rule += f" or {task.after!r} did not happen"
    part.reject(column, np.flatnonzero(missing), rule, lambda row: None)
    found: Array = labels.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(~(task.kind.allows(found) | np.isnan(found)))
    part.reject(column, wrong, f"label {{}} {task.kind.rule}", lambda row: float(found[row]))
    return found


def _read_labels(table: Table, rows: TypedRows) -> None:
    part, tasks = rows.part, table.tasks
    for column in dict.fromkeys(column for column in tasks.weight_columns if column):
        weights = read_column(part, column, "number").to_numpy(zero_copy_only=False)
        bad = np.flatnonzero(~(weights >= 0))
        part.reject(column, bad, "weight {} must be at least 0", lambda row, of=weights: float(of[row]))  # type: ignore[misc]
        rows.labels[column] = weights.astype(np.float32)
    for task in tasks.tasks:
        rows.labels[task.label_column] = _read_label(task, tasks, rows)
    tasks = tasks.funnel
    pairs = [(before, after) for after in range(len(tasks)) for before in tasks.ancestors(after)]
    for before, after in pairs:
        child, parent = tasks.tasks[after], tasks.tasks[before]
        happened = (rows.labels[child.label_column] == 1) & (rows.labels[parent.label_column] == 0)
        for task in (child, parent):
            if task.weight_column is not None:
                happened &= rows.labels[task.weight_column] > 0
        rule = f"{child.name!r} (={{}}) must not happen without {parent.name!r} (=0)"
        part.reject(child.label_column, np.flatnonzero(happened), rule, lambda row: 1)
    if table.delays:
        assert rows.time is not None
        rows.label_times = read_label_times(table.delays, tasks, part, rows.time, rows.labels, table.time_unit)
    if table.group is not None:
        rows.groups = read_column(part, table.group, "key")
        _reject_missing(part, table.group, rows.groups, "group")
    if isinstance(table.split, ByHash | ByColumn):
        rows.key = read_column(part, table.split.column, "key")
        _reject_missing(part, table.split.column, rows.key, "key of a split")
    if isinstance(table.split, ByColumn):
        bad = np.flatnonzero(given_splits(rows.key) < 0)
        rule = f"split {{}} must be one of {list(SPLITS)}"
        part.reject(table.split.column, bad, rule, lambda row, of=rows.key: of[row].as_py())  # type: ignore[misc]


def given_splits(names: pa.Array) -> Array:
    """Returns the position in `SPLITS` of each split's name, int64 [N]; -1 for another text.

    Example::

        >>> given_splits(pa.array(["test", "train", "dev"])).tolist()
        [2, 0, -1]
    """
    positions = pc.index_in(names.cast(pa.large_string()), pa.array(SPLITS, pa.large_string()))
    return np.asarray(positions.fill_null(-1).to_numpy(), np.int64)


def _reject_missing(part: Part, column: str, values: pa.Array, what: str) -> None:
    part.reject(column, np.flatnonzero(is_null(values)), f"{what} must not be missing", lambda row: None)


def sampled(table: Table, rows: TypedRows, share: float) -> Array:
    """Returns whether each row belongs to a share of all, bool [N]: by a hash of its group, of the value by which it is
    split, or of its place in its file."""
    if share == 1:
        return np.full(len(rows), True)
    key = rows.key if isinstance(table.split, ByHash) else None
    keys = key if rows.groups is None else rows.groups
    if keys is not None:
        hashes = stable_hashes(keys)
    else:
        numbers = pa.array(np.arange(rows.part.first_row, rows.part.first_row + len(rows)))
        hashes = stable_hashes(numbers) ^ stable_hashes(pa.array([PurePath(rows.part.source).name]))
    return to_unit_interval(finalise(hashes)) < share


def value_type(values: pa.Array) -> str | None:
    """Whether values are integers or strings; None for other types, and if all are missing."""
    if values.null_count == len(values):
        return None
    if pa.types.is_integer(values.type):
        return "integer"
    return "string" if pa.types.is_string(values.type) or pa.types.is_large_string(values.type) else None
