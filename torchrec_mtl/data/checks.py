"""What the columns of a split must satisfy; each check raises InputError on the first row that does not.

The sentence names the source (a file), the column, the row, counted from 0, and the value.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from torchrec_mtl.data.schema import Field
from torchrec_mtl.errors import InputError
from torchrec_mtl.tasks import TaskChain


def reject(source: str, column: str, bad: NDArray, rule: str, values: NDArray, offsets: NDArray | None = None) -> None:
    """Raise on the first True of ``bad``, whose value takes the place of ``{}`` in ``rule``.

    ``bad`` and ``values`` are [N], or [V] where ``offsets`` [N + 1] say which of V values are whose row's.
    """
    if bad.any():
        position = bad.argmax()
        row = position if offsets is None else np.searchsorted(offsets, position, side="right") - 1
        raise InputError(f"{source}: column {column!r}, row {row} (counted from 0): {rule.format(values[position])}")


def check_ids(source: str, field: Field, ids: NDArray, offsets: NDArray | None = None) -> None:
    """Ids in ``0 .. num_embeddings - 1``."""
    check_integers(source, field.name, ids)
    rule = f"id (={{}}) must be at least 0 and below `num_embeddings` (={field.num_embeddings})"
    reject(source, field.name, (ids < 0) | (ids >= field.num_embeddings), rule, ids, offsets)


def check_integers(source: str, column: str, values: NDArray) -> None:
    if not np.issubdtype(values.dtype, np.integer):
        raise InputError(f"{source}: column {column!r} must hold integers, not {values.dtype}")


def check_offsets(source: str, column: str, offsets: NDArray, num_values: int) -> None:
    """Offsets [N + 1] that split ``num_values`` values into N rows."""
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != num_values or (np.diff(offsets) < 0).any():
        raise InputError(f"{source}: offsets of column {column!r} must rise from 0 to its number of values ({num_values})")


def check_dense(source: str, columns: Sequence[str], dense: NDArray) -> None:
    """Finite float32 values [N, num_dense]."""
    for position, column in enumerate(columns):
        values = dense[:, position]
        reject(source, column, ~np.isfinite(values), "value (={}) must be finite", values)


def check_weights(source: str, columns: Sequence[str], weights: NDArray) -> None:
    """Finite weights [N, T] of at least 0."""
    for position, column in enumerate(columns):
        values = weights[:, position]
        reject(source, column, ~(np.isfinite(values) & (values >= 0)), "weight (={}) must be finite and at least 0", values)


def check_labels(source: str, tasks: TaskChain, labels: NDArray, known: NDArray) -> None:
    """Labels [N, T] of 0 or 1 where they are ``known`` (bool [N, T]), each implying those before it in the chain."""
    for task, column in enumerate(tasks.label_columns):
        values = labels[:, task]
        missing = "label (={}) may be missing only where its weight is 0"
        reject(source, column, np.isnan(values) & known[:, task], missing, values)
        reject(source, column, (values != 0) & (values != 1) & ~np.isnan(values), "label (={}) must be 0 or 1", values)
    for first, later in combinations(range(len(tasks)), 2):
        violated = (labels[:, later] == 1) & (labels[:, first] == 0) & known[:, later] & known[:, first]
        rule = f"{tasks.names[later]!r} (={{:g}}) without its {tasks.names[first]!r} (=0), which it implies"
        reject(source, tasks.label_columns[later], violated, rule, labels[:, later])
