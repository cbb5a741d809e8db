"""Ids of many fields in memory, gathered row by row into KeyedJaggedTensors."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.data.schema import Field

Array: TypeAlias = NDArray[Any]
ID_TYPES = (np.uint8, np.int16, np.int32, np.int64)


class IdColumns:
    """The ids of N rows, each field's in the smallest integer type that holds them.

    Single-valued fields of one type share a matrix [N, fields], so that the ids of a row lie together and a
    shuffled batch touches few cache lines.

    Args:
        fields: the fields, in the order of the KeyedJaggedTensors' keys.
        ids: field -> ids [N]; of a multi-valued one, values [V] and offsets [N + 1]. Already checked.
    """

    def __init__(self, fields: Sequence[Field], ids: Mapping[str, Array | tuple[Array, Array]]) -> None:
        self._keys = [field.name for field in fields]
        self._lists: dict[int, tuple[Array, Array]] = {}  # position of the field -> values [V], offsets [N + 1]
        self._matrices: list[tuple[list[int], Array]] = []  # positions of the fields, their ids [N, fields]
        self._ones, self._positions = torch.ones(0, dtype=torch.int64), torch.arange(1)
        single: dict[type[np.generic], list[int]] = {}
        for position, field in enumerate(fields):
            id_type = next(kind for kind in ID_TYPES if field.num_embeddings - 1 <= np.iinfo(kind).max)
            if field.multi_valued:
                values, offsets = ids[field.name]
                self._lists[position] = values.astype(id_type), offsets.astype(np.int64)
            else:
                single.setdefault(id_type, []).append(position)
        for shared_type, positions in single.items():
            columns = [ids[self._keys[position]] for position in positions]
            matrix = np.empty((len(columns[0]), len(columns)), shared_type)
            for index, column in enumerate(columns):
                matrix[:, index] = column
            self._matrices.append((positions, matrix))

    def gather(self, rows: Tensor) -> KeyedJaggedTensor:
        """The ids of ``rows`` (int64 [B]), one key a field."""
        ids = np.empty((len(self._keys), len(rows)), np.int64)
        for positions, matrix in self._matrices:
            ids[positions] = matrix.take(rows.numpy(), axis=0).T
        if not self._lists:
            values = torch.from_numpy(ids.reshape(-1))
            lengths, offsets = self._one_each(len(values))
            return KeyedJaggedTensor(self._keys, values, lengths=lengths, offsets=offsets, stride=len(rows))
        columns, counts = list(ids), np.ones_like(ids)
        for position, (of_all, offsets_of_all) in self._lists.items():
            columns[position], counts[position] = _gather_lists(of_all, offsets_of_all, rows.numpy())
        values = torch.from_numpy(np.concatenate(columns))
        return KeyedJaggedTensor(self._keys, values, lengths=torch.from_numpy(counts.reshape(-1)), stride=len(rows))

    def _one_each(self, num_ids: int) -> tuple[Tensor, Tensor]:
        """Lengths [num_ids] and offsets [num_ids + 1] of single ids, views of what all batches share."""
        if len(self._ones) < num_ids:
            self._ones, self._positions = torch.ones(num_ids, dtype=torch.int64), torch.arange(num_ids + 1)
        return self._ones[:num_ids], self._positions[: num_ids + 1]


def _gather_lists(values: Array, offsets: Array, rows: Array) -> tuple[Array, Array]:
    """The values (int64) of the lists ``rows``, one list after the other, and the lists' lengths."""
    starts, lengths = offsets[rows], offsets[rows + 1] - offsets[rows]
    starts_here = np.cumsum(lengths) - lengths
    positions = np.arange(lengths.sum()) + np.repeat(starts - starts_here, lengths)
    return values[positions].astype(np.int64), lengths
