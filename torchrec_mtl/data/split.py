"""The rows of one split in memory, checked once, handed out as batches."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.data.batches import MultiTaskBatch
from torchrec_mtl.data.checks import (
    check_dense,
    check_ids,
    check_integers,
    check_labels,
    check_offsets,
    check_weights,
)
from torchrec_mtl.data.schema import Field, Schema
from torchrec_mtl.errors import InputError


class Split:
    """N rows in columns.

    Ids are kept in the smallest integer type that holds their field's and handed out as int64.

    Args:
        schema: the fields, in the order that batches will have them as keys, the dense columns and the tasks.
        ids: field -> ids [N]; of a multi-valued field, its values [V] and their offsets [N + 1].
        labels: [N, T], 0 or 1, tasks in order; NaN only where the weight is 0.
        dense: [N, num_dense] in the order of ``schema.dense``; may be None where there is none.
        weights: [N, T]; None means 1 everywhere.
        groups: [N] integers, the rows' groups for GAUC.
        source: what error messages call these rows; a reader gives the file.

    Raises:
        InputError: on the first value that breaks a rule, naming the column, the row and the value; and if the
            columns are not of one length.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> schema = Schema("shop", [Field("store", 9), Field("tags", 5, True)], TaskChain(["click", "purchase"]))
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
        self._labels, self._weights = self._pack_targets(labels, weights)
        self._dense = self._pack_dense(dense)
        self.groups = self._pack_groups(groups)
        self._pack_ids(ids)

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, rows: Tensor) -> MultiTaskBatch:
        """The rows ``rows`` (int64 [B], 0 <= B) in that order."""
        return MultiTaskBatch(
            dense_features=self._dense[rows],
            sparse_features=self._sparse_features(rows),
            labels=self._labels[rows].float(),
            weights=None if self._weights is None else self._weights[rows],
        )
