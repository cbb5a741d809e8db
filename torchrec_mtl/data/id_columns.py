"""Ids of many fields in memory, gathered row by row into KeyedJaggedTensors."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.data.schema import Field

ID_TYPES = (np.uint8, np.int16, np.int32, np.int64)


class IdColumns:
    """The ids of N rows, each field's in the smallest integer type that holds them.

    Single-valued fields of one type share a matrix [N, fields], so that the ids of a row lie together: a shuffled
    batch then touches a few cache lines a row.

    Args:
        fields: the fields, in the order of the KeyedJaggedTensors' keys.
        ids: field -> ids [N], or values [V] and offsets [N + 1]; already checked.
    """

    def __init__(self, fields: Sequence[Field], ids: Mapping[str, NDArray | tuple[NDArray, NDArray]]) -> None:
        self._keys = [field.name for field in fields]
        self._matrices: list[tuple[Tensor, Tensor]] = []  # positions of the fields [f], their ids [N, f]
        self._lists: dict[int, tuple[Tensor, Tensor]] = {}  # position -> values [V], offsets [N + 1]
        single: dict[type, list[int]] = {}
        for position, field in enumerate(fields):
            id_type = next(kind for kind in ID_TYPES if field.num_embeddings - 1 <= np.iinfo(kind).max)
            if field.multi_valued:
                values, offsets = ids[field.name]
                self._lists[position] = torch.from_numpy(values.astype(id_type)), torch.from_numpy(offsets)
            else:
                single.setdefault(id_type, []).append(position)
        for id_type, positions in single.items():
            num_rows = len(ids[self._keys[positions[0]]])
            matrix = np.empty((num_rows, len(positions)), id_type)
            for column, position in enumerate(positions):
                matrix[:, column] = ids[self._keys[position]]
            self._matrices.append((torch.tensor(positions), torch.from_numpy(matrix)))

    def gather(self, rows: Tensor) -> KeyedJaggedTensor:
        """The ids of ``rows`` (int64 [B]), one key a field."""
        num_fields, batch_size = len(self._keys), len(rows)
        ids = torch.empty(num_fields, batch_size, dtype=torch.int64)
        for positions, matrix in self._matrices:
            ids.index_copy_(0, positions, matrix[rows].t().long())
        if not self._lists:
            lengths, offsets = self._one_each(ids.numel())
            return KeyedJaggedTensor(self._keys, ids.view(-1), lengths=lengths, offsets=offsets, stride=batch_size)
        values, lengths = list(ids), torch.ones_like(ids)
        for position, column in self._lists.items():
            values[position], lengths[position] = _gather_lists(*column, rows)
        return KeyedJaggedTensor(self._keys, torch.cat(values), lengths=lengths.view(-1), stride=batch_size)

    def _one_each(self, num_ids: int) -> tuple[Tensor, Tensor]:
        """Lengths and offsets of ``num_ids`` single ids; views of one pair of tensors that batches share."""
        return torch.ones(num_ids), ...


def _gather_lists(values: Tensor, offsets: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Values (int64) and lengths of the lists ``rows``."""
    starts, lengths = offsets[rows], offsets[rows + 1] - offsets[rows]
    ends = lengths.cumsum(0)
    num_values = int(ends[-1]) if len(rows) else 0
    source = torch.arange(num_values) + torch.repeat_interleave(starts - (ends - lengths), lengths, output_size=num_values)
    return values[source].long(), lengths
