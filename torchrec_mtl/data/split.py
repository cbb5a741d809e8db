"""The rows of one split: checked once, then read as batches."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from torchrec_mtl.argument_types import check_type
from torchrec_mtl.data import checks
from torchrec_mtl.data.batches import MultiTaskBatch
from torchrec_mtl.data.checks import Source
from torchrec_mtl.data.fingerprint import fingerprint_of_arrays
from torchrec_mtl.data.id_columns import IdColumns, pack_ids
from torchrec_mtl.data.label_statistics import LabelCounts
from torchrec_mtl.data.lists import Array, Lists, as_array
from torchrec_mtl.data.schema import Field, Schema
from torchrec_mtl.errors import InputError
from torchrec_mtl.modules.heads import LabelStatistics

Column = ArrayLike | tuple[ArrayLike, ...]


class Split:
    """N rows stored as columns in memory; `read_split` returns one with memory-mapped columns.

    Each field's ids are kept in the smallest integer type that holds them; batches have them as int64. Float arrays may
    be kept without a copy: do not change them afterwards.

    Args:
        schema: fields, in the order of the batches' keys; dense columns and tasks.
        ids: ids [N] of each field; for a multi-valued field, a tuple of values [V], offsets [N + 1] and, if the field
            has a weight column, weights [V].
        labels: labels [N, T], tasks in order: 0 or 1, or a value; NaN only where the weight is 0, or where the task did
            not happen that a value comes after.
        dense: dense values [N, num_dense] in the order of ``schema.dense``; None if there are none.
        weights: label weights [N, T]; None stands for 1 everywhere.
        groups: groups of the rows, for GAUC and for losses that compare rows, integers [N]; the attribute ``groups``
            has them as int64.
        source: name of these rows in error messages; a reader gives the file.

    Attributes:
        num_unknown: number of ids that are outside their field's range, and of all ids, by the name of each field that
            has an ``unknown_row``, which stands for them in the batches.

    Raises:
        InputError: on the first value that breaks a rule, naming the column, the row and the value; also if columns
            differ in length.

    Example::

        >>> from torchrec_mtl.tasks import TaskChain
        >>> fields = [Field("store", 9), Field("tags", 5, multi_valued=True)]
        >>> schema = Schema("shop", fields, TaskChain(["click", "purchase"]))
        >>> ids = {"store": [8, 0, 3], "tags": ([4, 4, 1], [0, 2, 2, 3])}
        >>> split = Split(schema, ids, labels=[[1, 1], [0, 0], [1, 0]])
        >>> batch = split.batch(torch.tensor([2, 0]))
        >>> batch.sparse_features["store"].values(), batch.sparse_features["tags"].lengths()
        (tensor([3, 8]), tensor([1, 2]))
    """

    def __init__(
        self,
        schema: Schema,
        ids: Mapping[str, Column],
        labels: ArrayLike,
        dense: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        source: str | Source = "Split",
    ) -> None:
        check_type("schema", schema, Schema)
        check_type("ids", ids, Mapping[str, Any])
        num_rows = len(np.atleast_1d(as_array("labels", labels, np.float32)))
        rows = _Checker(schema, num_rows, source if isinstance(source, Source) else Source(source))
        known = None if weights is None else rows.weights(weights)
        arrays = {
            "labels": rows.labels(labels, known),
            "dense": rows.dense(np.empty((rows.num_rows, 0)) if dense is None else dense),
        }
        if known is not None:
            arrays["weights"] = known
        if groups is not None:
            arrays["groups"] = rows.groups(groups)
        arrays |= pack_ids(schema.fields, {field.name: rows.ids(field, ids) for field in schema.fields})
        self._attach(schema, arrays, schema.field_names, str(source))
        self.num_unknown: Mapping[str, tuple[int, int]] = rows.num_unknown

    @classmethod
    def from_arrays(
        cls,
        schema: Schema,
        arrays: Mapping[str, Array],
        fields: Sequence[str],
        source: str,
        fingerprint: str,
        num_unknown: Mapping[str, tuple[int, int]] | None = None,
    ) -> "Split":
        """Returns a split with the ``arrays`` of another, which are not checked again, and batches of ``fields``."""
        split = cls.__new__(cls)
        split.__dict__["fingerprint"] = fingerprint
        split.num_unknown = num_unknown or {}
        split._attach(schema, arrays, fields, source)
        return split

    def _attach(self, schema: Schema, arrays: Mapping[str, Array], fields: Sequence[str], source: str) -> None:
        self.arrays, self.source = arrays, source
        self.schema = schema.select(fields)
        self._ids = IdColumns(schema.fields, arrays, fields, source)

    def __len__(self) -> int:
        return len(self.arrays["labels"])

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the columns, their meaning and all values, by which a run knows its data."""
        return fingerprint_of_arrays(self.schema, self.arrays)

    @property
    def groups(self) -> Tensor | None:
        """Groups of the rows for GAUC, int64 [N], or None."""
        return torch.from_numpy(self.arrays["groups"].astype(np.int64)) if "groups" in self.arrays else None

    def batch(self, rows: Tensor, with_groups: bool = True) -> MultiTaskBatch:
        """Returns the rows at the positions ``rows`` (int64 [B], B may be 0), in that order.

        Args:
            rows: positions.
            with_groups: whether the batch has the groups of its rows, if the split has groups.

        Raises:
            InputError: if a memory-mapped file holds values that were never written.
        """
        taken = {
            name: self.arrays[name].take(rows.numpy(), axis=0)
            for name in ("labels", "dense", "weights", *["groups"] * with_groups)
            if name in self.arrays
        }
        if len(rows) and taken["labels"][:, : len(self.schema.tasks.funnel)].max(initial=0) > 1:
            raise InputError(f"{self.source}: damaged: a label is neither 0 nor 1")
        if not all(np.isfinite(taken[name]).all() for name in taken):
            raise InputError(f"{self.source}: damaged: a dense value, label or weight is not finite")
        return MultiTaskBatch(
            dense_features=torch.from_numpy(taken["dense"]),
            sparse_features=self._ids.gather(rows),
            labels=torch.from_numpy(taken["labels"].astype(np.float32)),
            weights=torch.from_numpy(taken["weights"]) if "weights" in taken else None,
            groups=torch.from_numpy(taken["groups"].astype(np.int64)) if "groups" in taken else None,
        )

    @cached_property
    def _counts(self) -> LabelCounts:
        counts = LabelCounts(self.schema.tasks)
        for start in range(0, len(self), 2**20):  # in slices, since columns may be larger than memory
            rows = slice(start, start + 2**20)
            counts.add(self.arrays["labels"][rows], self.arrays["weights"][rows] if "weights" in self.arrays else None)
        return counts

    def base_rates(self) -> Tensor:
        """Returns the share of positives among the labelled rows of each task that happens or does not."""
        return self._counts.base_rates()

    def value_statistics(self) -> dict[str, LabelStatistics]:
        """Returns the statistics of each task that is a value, by name."""
        return self._counts.values()


class _Checker:
    """Checks the arguments of `Split` and converts them to the types in which they are kept."""

    def __init__(self, schema: Schema, num_rows: int, source: Source) -> None:
        self.schema, self.num_rows, self.source = schema, num_rows, source
        self.num_unknown: dict[str, tuple[int, int]] = {}
        if num_rows == 0:
            raise InputError(f"{source}: must have at least one row")

    def weights(self, weights: ArrayLike) -> Array:
        array = self._floats("weights", weights, len(self.schema.tasks))
        columns = [task.weight_column or task.name for task in self.schema.tasks.tasks]
        checks.check_weights(self.source, columns, array)
        return array

    def labels(self, labels: ArrayLike, weights: Array | None) -> Array:
        array = self._floats("labels", labels, len(self.schema.tasks))
        known = np.ones(array.shape, bool) if weights is None else weights > 0
        checks.check_labels(self.source, self.schema.tasks, array, known)
        if self.schema.tasks.values:
            return np.where(np.isnan(array), np.float32(0), array)
        return (array == 1).astype(np.uint8)  # a missing label is 0, and masked

    def dense(self, dense: ArrayLike) -> Array:
        array = self._floats("dense", dense, len(self.schema.dense))
        checks.check_dense(self.source, self.schema.dense, array)
        return array

    def groups(self, groups: ArrayLike) -> Array:
        array = as_array("groups", groups)
        if array.ndim != 1:
            raise InputError(f"{self.source}: groups must be of shape {[self.num_rows]}, not {list(array.shape)}")
        self._check_length("groups", len(array))
        checks.check_integers(self.source, self.schema.group or "groups", array)
        return array.astype(np.int64)

    def ids(self, field: Field, ids: Mapping[str, Column]) -> Array | Lists:
        if field.name not in ids:
            raise InputError(f"{self.source}: column {field.name!r} is missing")
        column = ids[field.name]
        if not field.multi_valued:
            values = as_array(field.name, column)
            if values.ndim != 1:
                rule = f"must be of shape {[self.num_rows]}, not {list(values.shape)}"
                raise InputError(f"{self.source}: column {field.name!r} {rule}")
            self._check_length(f"column {field.name!r}", len(values))
            return self._known(field, values)
        parts = ("values", "offsets") if field.weight_column is None else ("values", "offsets", "weights")
        if not (isinstance(column, tuple) and len(column) == len(parts)):
            raise InputError(f"{self.source}: column {field.name!r} must be a tuple of {' and '.join(parts)}")
        values, offsets = np.asarray(column[0]), np.asarray(column[1])
        checks.check_offsets(self.source, field.name, offsets, len(values))
        self._check_length(f"column {field.name!r}", len(offsets) - 1)
        values = self._known(field, values, offsets)
        if field.weight_column is None:
            return Lists(values, offsets)
        weights = np.asarray(column[2], np.float32)
        if weights.shape != values.shape:
            rule = f"must be as many as its values ({len(values)}), not {len(weights)}"
            raise InputError(f"{self.source}: weights of column {field.name!r} {rule}")
        checks.check_id_weights(self.source, field.weight_column, weights, offsets)
        return Lists(values, offsets, weights)

    def _known(self, field: Field, ids: Array, offsets: Array | None = None) -> Array:
        known, num_unknown = checks.replace_unknown(self.source, field, ids, offsets)
        if field.unknown_row is not None:
            self.num_unknown[field.name] = (num_unknown, len(ids))
        return known

    def _floats(self, name: str, values: ArrayLike, num_columns: int) -> Array:
        array = np.require(as_array(name, values, np.float32), np.float32, ["C"])
        if array.shape != (self.num_rows, num_columns):
            expected = [self.num_rows, num_columns]
            raise InputError(f"{self.source}: {name} must be of shape {expected}, not {list(array.shape)}")
        return array

    def _check_length(self, name: str, num_rows: int) -> None:
        if num_rows != self.num_rows:
            rule = f"must have as many rows as the labels ({self.num_rows}), not {num_rows}"
            raise InputError(f"{self.source}: {name} {rule}")
