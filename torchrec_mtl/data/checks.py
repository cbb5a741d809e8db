"""What the columns of a split must satisfy; each check raises InputError on the first row that does not.

The sentence names the source (a file), the column, the row, counted from 0, and the value.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchrec_mtl.data.schema import Field
from torchrec_mtl.errors import InputError
from torchrec_mtl.tasks import TaskForest

Array = NDArray[Any]


@dataclass(frozen=True)
class Source:
    """What rows come from, and which of its rows is their first."""

    name: str
    first_row: int = 0

    def __str__(self) -> str:
        return self.name


def reject(source: Source, column: str, bad: Array, rule: str, values: Array, offsets: Array | None = None) -> None:
    """Raise on the first True of ``bad``, whose value takes the place of ``{}`` in ``rule``.

    ``bad`` and ``values`` are [N]; or [V], where ``offsets`` [N + 1] say which row each of V values is of.
    """
    if bad.any():
        position = bad.argmax()
        row = position if offsets is None else np.searchsorted(offsets, position, side="right") - 1
        told = rule.format(values[position])
        raise InputError(f"{source}: column {column!r}, row {source.first_row + row} (counted from 0): {told}")


def check_integers(source: Source, column: str, values: Array) -> None:
    if not np.issubdtype(values.dtype, np.integer):
        kind = type(values[0]).__name__ if values.dtype == object else values.dtype
        raise InputError(f"{source}: column {column!r} must hold integers, not {kind}")


def check_ids(source: Source, field: Field, ids: Array, offsets: Array | None = None) -> None:
    """Integers in ``0 .. num_embeddings - 1``."""
    rule = f"id (={{}}) must be at least 0 and below `num_embeddings` (={field.num_embeddings})"
    if len(ids):
        check_integers(source, field.name, ids)
        reject(source, field.name, (ids < 0) | (ids >= field.num_embeddings), rule, ids, offsets)


def check_offsets(source: Source, column: str, offsets: Array, num_values: int) -> None:
    """Offsets [N + 1] that share out ``num_values`` values among N rows."""
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != num_values or (np.diff(offsets) < 0).any():
        raise InputError(
            f"{source}: offsets of column {column!r} must rise from 0 to its number of values ({num_values})"
        )


def check_id_weights(source: Source, column: str, weights: Array, offsets: Array) -> None:
    """Finite weights [V] of the ids of a multi-valued field."""
    reject(source, column, ~np.isfinite(weights), "weight of an id (={}) must be finite", weights, offsets)


def check_dense(source: Source, columns: Sequence[str], dense: Array) -> None:
    """Finite values [N, columns]."""
    for column, values in zip(columns, dense.T, strict=True):
        reject(source, column, ~np.isfinite(values), "value (={}) must be finite", values)


def check_weights(source: Source, columns: Sequence[str], weights: Array) -> None:
    """Finite weights [N, T] of at least 0."""
    rule = "weight (={}) must be finite and at least 0"
    for column, values in zip(columns, weights.T, strict=True):
        reject(source, column, ~(np.isfinite(values) & (values >= 0)), rule, values)


def check_labels(source: Source, tasks: TaskForest, labels: Array, known: Array) -> None:
    """Labels [N, T] of 0 or 1, each implying those it needs; NaN only where not ``known`` (bool [N, T])."""
    missing = "label (={}) may be missing only where its weight is 0"
    for column, values, value_known in zip(tasks.label_columns, labels.T, known.T, strict=True):
        reject(source, column, np.isnan(values) & value_known, missing, values)
        other = (values != 0) & (values != 1) & ~np.isnan(values)
        reject(source, column, other, "label (={}) must be 0 or 1", values)
    pairs = [(before, after) for after in range(len(tasks)) for before in tasks.ancestors(after)]
    for before, after in pairs:  # all ancestors: the label between them may be masked
        violated = (labels[:, after] == 1) & (labels[:, before] == 0) & known[:, after] & known[:, before]
        rule = f"{tasks.names[after]!r} (={{:g}}) must not happen without {tasks.names[before]!r} (=0)"
        reject(source, tasks.label_columns[after], violated, rule, labels[:, after])
