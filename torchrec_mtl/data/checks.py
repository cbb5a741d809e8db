"""Checks of a split's columns. Each raises `InputError` on the first row that breaks its rule.

The message names the source (a file), the column, the row (counted from 0) and, unless `redacted`, the value.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.schema import Field
from torchrec_mtl.errors import InputError, shown
from torchrec_mtl.tasks import TaskForest


@dataclass(frozen=True)
class Source:
    """The name of what rows come from, and the number of the first of these rows there."""

    name: str
    first_row: int = 0

    def __str__(self) -> str:
        return self.name


def reject(source: Source, column: str, bad: Array, rule: str, values: Array, offsets: Array | None = None) -> None:
    """Raises on the first True of ``bad``, with its value in place of ``{}`` in ``rule``.

    ``bad`` and ``values`` are [N]; or [V] if ``offsets`` [N + 1] say which of the V values belong to which row.
    """
    if bad.any():
        position = bad.argmax()
        row = position if offsets is None else np.searchsorted(offsets, position, side="right") - 1
        message = rule.format(shown(values[position]))
        raise InputError(f"{source}: column {column!r}, row {source.first_row + row} (counted from 0): {message}")


def check_integers(source: Source, column: str, values: Array) -> None:
    """Checks that values are of an integer type."""
    if values.dtype.kind not in "iu":  # to NumPy, durations are integers too
        kind = type(values[0]).__name__ if values.dtype == object else values.dtype
        raise InputError(f"{source}: column {column!r} must hold integers, not {kind}")


def check_ids(source: Source, field: Field, ids: Array, offsets: Array | None = None) -> None:
    """Checks that ids are integers in ``0 .. num_embeddings - 1``, whether or not there is a row for others."""
    rule = f"id (={{}}) must be at least 0 and below `num_embeddings` (={field.num_embeddings})"
    if len(ids):
        check_integers(source, field.name, ids)
        reject(source, field.name, (ids < 0) | (ids >= field.num_embeddings), rule, ids, offsets)


def replace_unknown(source: Source, field: Field, ids: Array, offsets: Array | None = None) -> tuple[Array, int]:
    """Returns ids with ``field.unknown_row`` in place of each that is out of range, and the number of these.

    Raises `InputError` as `check_ids` does, for an id out of range only if the field has no such row.
    """
    if field.unknown_row is None or not len(ids):
        check_ids(source, field, ids, offsets)
        return ids, 0
    check_integers(source, field.name, ids)
    unknown = (ids < 0) | (ids >= field.num_embeddings)
    if not unknown.any():
        return ids, 0
    known = np.where(unknown, 0, ids).astype(np.int64)  # the ids' own type may not hold the row
    known[unknown] = field.unknown_row
    return known, int(unknown.sum())


def check_offsets(source: Source, column: str, offsets: Array, num_values: int) -> None:
    """Checks that offsets [N + 1] divide ``num_values`` values among N rows."""
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != num_values or (np.diff(offsets) < 0).any():
        raise InputError(
            f"{source}: offsets of column {column!r} must rise from 0 to its number of values ({num_values})"
        )


def check_id_weights(source: Source, column: str, weights: Array, offsets: Array) -> None:
    """Checks that the weights [V] of a multi-valued field's ids are finite."""
    reject(source, column, ~np.isfinite(weights), "weight of an id (={}) must be finite", weights, offsets)


def check_dense(source: Source, columns: Sequence[str], dense: Array) -> None:
    """Checks that dense values [N, num_dense] are finite."""
    for column, values in zip(columns, dense.T, strict=True):
        reject(source, column, ~np.isfinite(values), "value (={}) must be finite", values)


def check_weights(source: Source, columns: Sequence[str], weights: Array) -> None:
    """Checks that label weights [N, T] are finite and at least 0."""
    rule = "weight (={}) must be finite and at least 0"
    for column, values in zip(columns, weights.T, strict=True):
        reject(source, column, ~(np.isfinite(values) & (values >= 0)), rule, values)


def check_labels(source: Source, tasks: TaskForest, labels: Array, known: Array) -> None:
    """Checks that labels [N, T] are what their kinds allow and imply their ancestors; NaN is allowed where they do not
    count: where not ``known`` [N, T], see `TaskForest.counted`."""
    missing = "label (={}) may be missing only where its weight is 0"
    for place, (task, values) in enumerate(zip(tasks.tasks, labels.T, strict=True)):
        elsewhere = "" if task.is_binary or task.after is None else f" or {task.after!r} did not happen"
        reject(
            source,
            task.label_column,
            np.isnan(values) & tasks.counted(place, labels == 1, known),
            missing + elsewhere,
            values,
        )
        not_allowed = ~task.kind.allows(values) & ~np.isnan(values)
        reject(source, task.label_column, not_allowed, f"label (={{}}) {task.kind.rule}", values)
    tasks = tasks.funnel
    pairs = [(before, after) for after in range(len(tasks)) for before in tasks.ancestors(after)]
    for before, after in pairs:  # all ancestors, not only the parent: its label may be masked
        violated = (labels[:, after] == 1) & (labels[:, before] == 0) & known[:, after] & known[:, before]
        rule = f"{tasks.names[after]!r} (=1) must not happen without {tasks.names[before]!r} (=0)"
        reject(source, tasks.label_columns[after], violated, rule, labels[:, after])
