"""The rows of one split in memory: checked once, handed out as batches."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from torchrec_mtl.data import checks
from torchrec_mtl.data.batches import MultiTaskBatch
from torchrec_mtl.data.id_columns import Array, IdColumns
from torchrec_mtl.data.schema import Field, Schema
from torchrec_mtl.errors import InputError


class Split:
    """N rows in columns.

    Ids are kept in the smallest integer type that holds their field's and handed out as int64. Float arrays
    may be kept without a copy: do not change them afterwards.

    Args:
        schema: the fields, in the order that batches have them as keys; the dense columns and the tasks.
        ids: field -> ids [N]; of a multi-valued field, its values [V] and their offsets [N + 1].
        labels: [N, T], 0 or 1, tasks in order; NaN only where the weight is 0.
        dense: [N, num_dense] in the order of ``schema.dense``; None where there is none.
        weights: [N, T]; None means 1 everywhere.
        groups: [N] integers, the rows' groups for GAUC; kept as int64 in the attribute ``groups``.
        source: what error messages call these rows; a reader gives the file.

    Raises:
        InputError: on the first value that breaks a rule, naming the column, the row and the value; and where
            columns differ in length.

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
        ids: Mapping[str, ArrayLike | tuple[ArrayLike, ArrayLike]],
        labels: ArrayLike,
        dense: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        source: str = "Split",
    ) -> None:
        self.schema = schema
        self._source = source
        self._num_rows = len(np.asarray(labels))
        if self._num_rows == 0:
            raise InputError(f"{source}: must have at least one row")
        self._weights = None if weights is None else self._checked_weights(weights)
        self._labels = self._checked_labels(labels)
        self._dense = self._checked_dense(np.empty((self._num_rows, 0)) if dense is None else dense)
        self.groups = None if groups is None else self._checked_groups(groups)
        checked = {field.name: self._checked_ids(field, ids) for field in schema.fields}
        self._ids = IdColumns(schema.fields, checked)

    def __len__(self) -> int:
        return self._num_rows

    def batch(self, rows: Tensor) -> MultiTaskBatch:
        """The rows ``rows`` (int64 [B], B may be 0), in that order."""
        return MultiTaskBatch(
            dense_features=self._dense.index_select(0, rows),
            sparse_features=self._ids.gather(rows),
            labels=self._labels.index_select(0, rows).float(),
            weights=None if self._weights is None else self._weights.index_select(0, rows),
        )

    def base_rates(self) -> Tensor:
        """Each task's share of positives among its labelled rows, ``[T]``."""
        labels = self._labels.float()
        if self._weights is None:
            return labels.mean(0)
        known = self._weights > 0
        return labels.where(known, 0.0).sum(0) / known.sum(0)

    def _checked_weights(self, weights: ArrayLike) -> Tensor:
        array = self._floats("weights", weights, len(self.schema.tasks))
        columns = self.schema.tasks.weight_columns or self.schema.tasks.names
        checks.check_weights(self._source, columns, array)
        return torch.from_numpy(array)

    def _checked_labels(self, labels: ArrayLike) -> Tensor:
        array = self._floats("labels", labels, len(self.schema.tasks))
        known = np.ones(array.shape, bool) if self._weights is None else self._weights.numpy() > 0
        checks.check_labels(self._source, self.schema.tasks, array, known)
        return torch.from_numpy((array == 1).astype(np.uint8))  # a missing label is 0, and masked

    def _checked_dense(self, dense: ArrayLike) -> Tensor:
        array = self._floats("dense", dense, len(self.schema.dense))
        checks.check_dense(self._source, self.schema.dense, array)
        return torch.from_numpy(array)

    def _checked_groups(self, groups: ArrayLike) -> Tensor:
        array = np.asarray(groups)
        self._check_length("groups", len(array))
        checks.check_integers(self._source, self.schema.group or "groups", array)
        return torch.from_numpy(array.astype(np.int64))

    def _checked_ids(
        self, field: Field, ids: Mapping[str, ArrayLike | tuple[ArrayLike, ArrayLike]]
    ) -> Array | tuple[Array, Array]:
        if field.name not in ids:
            raise InputError(f"{self._source}: column {field.name!r} is missing")
        column = ids[field.name]
        if not field.multi_valued:
            values = np.asarray(column)
            self._check_length(f"column {field.name!r}", len(values))
            checks.check_ids(self._source, field, values)
            return values
        if not (isinstance(column, tuple) and len(column) == 2):
            raise InputError(f"{self._source}: column {field.name!r} must be a tuple of values and offsets")
        values, offsets = np.asarray(column[0]), np.asarray(column[1])
        checks.check_offsets(self._source, field.name, offsets, len(values))
        self._check_length(f"column {field.name!r}", len(offsets) - 1)
        checks.check_ids(self._source, field, values, offsets)
        return values, offsets

    def _floats(self, what: str, values: ArrayLike, num_columns: int) -> Array:
        array = np.require(values, np.float32, ["C", "W"])  # torch shares it
        if array.shape != (self._num_rows, num_columns):
            expected = [self._num_rows, num_columns]
            raise InputError(f"{self._source}: {what} must be of shape {expected}, not {list(array.shape)}")
        return array

    def _check_length(self, what: str, num_rows: int) -> None:
        if num_rows != self._num_rows:
            rows = f"as many rows as the labels ({self._num_rows})"
            raise InputError(f"{self._source}: {what} must have {rows}, not {num_rows}")
