"""Packs the ids of many fields into few arrays, and gathers rows of them into KeyedJaggedTensors."""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.data.lists import Array, Lists, concatenate_ranges
from torchrec_mtl.data.schema import Field
from torchrec_mtl.errors import InputError

ID_TYPES = (np.uint8, np.int16, np.int32, np.int64)
STARTS, LENGTHS = "list_starts", "list_lengths"


def pack_ids(fields: Sequence[Field], ids: Mapping[str, Array | Lists]) -> dict[str, Array]:
    """Returns named arrays with the ids of N rows, each field's ids in the smallest integer type that holds them.

    The ids of a row lie together, so that a shuffled batch touches few cache lines, or few pages of a file.
    Single-valued fields of the same type share a matrix [N, fields]. Multi-valued fields share two matrices,
    ``list_starts`` and ``list_lengths``; each has an array of values [V] and, if it has weights, one of weights [V].

    Args:
        fields: fields to pack.
        ids: checked ids [N] of each single-valued field, `Lists` of each multi-valued one.
    """
    arrays: dict[str, Array] = {}
    matrices: dict[str, list[Array]] = {}
    for field in fields:
        column, dtype = ids[field.name], id_type(field.num_embeddings)
        if not isinstance(column, Lists):
            matrices.setdefault(_matrix_name(field), []).append(column.astype(dtype))
            continue
        lists, list_numbers = column.merge_repeats()
        number = len(matrices.setdefault(STARTS, []))
        matrices[STARTS].append(lists.offsets[list_numbers].astype(np.int64))
        matrices.setdefault(LENGTHS, []).append(np.diff(lists.offsets)[list_numbers].astype(np.int32))
        arrays[values_name(number)] = lists.values.astype(dtype)
        if lists.weights is not None:
            arrays[weights_name(number)] = lists.weights
    return {**arrays, **{name: np.stack(columns, axis=1) for name, columns in matrices.items()}}


class IdColumns:
    """Gathers rows from the arrays of `pack_ids`.

    Args:
        fields: fields that were packed.
        arrays: arrays of `pack_ids`, in memory or memory-mapped.
        keys: names of the fields to gather, in the order of the KeyedJaggedTensors' keys.
        source: name of the arrays in error messages.
    """

    def __init__(self, fields: Sequence[Field], arrays: Mapping[str, Array], keys: Sequence[str], source: str) -> None:
        self._keys, self._arrays, self._source = list(keys), arrays, source
        key_index = {key: index for index, key in enumerate(keys)}
        sizes = {field.name: field.num_embeddings for field in fields}
        self._sizes = np.array([sizes[key] for key in keys], np.uint64)
        self._matrices: list[tuple[list[int], list[int], Array]] = []  # indices of keys, columns, ids [N, fields]
        for name in {_matrix_name(field): None for field in fields if not field.multi_valued}:
            packed = [field.name for field in fields if not field.multi_valued and _matrix_name(field) == name]
            columns = [column for column, key in enumerate(packed) if key in key_index]
            self._matrices.append(([key_index[packed[column]] for column in columns], columns, arrays[name]))
        lists = [field.name for field in fields if field.multi_valued]
        self._lists = [(key_index[key], number) for number, key in enumerate(lists) if key in key_index]
        self._weighted = any(weights_name(number) in arrays for _, number in self._lists)

    def gather(self, rows: Tensor) -> KeyedJaggedTensor:
        """Returns the ids of ``rows`` (int64 [B]), one key per field.

        Raises:
            InputError: if an id is outside its field's range, or a list outside the field's values; only a damaged
                file can hold either.
        """
        ids = np.zeros((len(self._keys), len(rows)), np.int64)
        for indices, columns, matrix in self._matrices:
            taken = matrix.take(rows.numpy(), axis=0).T
            ids[indices] = taken if len(columns) == len(taken) else taken[columns]
        if self._lists:
            return self._gather_lists(ids, rows.numpy())
        self._check(ids.view(np.uint64).max(axis=1, initial=0))
        values = torch.from_numpy(ids.reshape(-1))
        # each batch has lengths of its own, which a user may change
        lengths, offsets = torch.ones(len(values), dtype=torch.int64), torch.arange(len(values) + 1)
        return KeyedJaggedTensor(list(self._keys), values, lengths=lengths, offsets=offsets, stride=len(rows))

    def _gather_lists(self, ids: Array, rows: Array) -> KeyedJaggedTensor:
        """Adds the multi-valued fields to ``ids`` [F, B], which has zeros in their place."""
        columns: list[Array] = list(ids)
        lengths = np.ones_like(ids)
        weights = [np.ones(len(rows), np.float32)] * len(columns)
        all_starts = self._arrays[STARTS].take(rows, axis=0)
        all_lengths = self._arrays[LENGTHS].take(rows, axis=0)
        for index, number in self._lists:
            lengths[index] = all_lengths[:, number]
            columns[index], weights[index] = self._gather_list(index, number, all_starts[:, number], lengths[index])
        self._check(np.array([column.view(np.uint64).max(initial=0) for column in columns]))
        return KeyedJaggedTensor(
            list(self._keys),
            torch.from_numpy(np.concatenate(columns)),
            weights=torch.from_numpy(np.concatenate(weights)) if self._weighted else None,
            lengths=torch.from_numpy(lengths.reshape(-1)),
            stride=len(rows),
        )

    def _gather_list(self, index: int, number: int, starts: Array, lengths: Array) -> tuple[Array, Array]:
        """Returns the concatenated values (int64) and weights (1 if there are none) of some lists of a field."""
        values, weights = self._arrays[values_name(number)], self._arrays.get(weights_name(number))
        if len(starts) and (min(starts.min(), lengths.min()) < 0 or (starts + lengths).max() > len(values)):
            raise InputError(f"{self._source}: damaged: a list of {self._keys[index]!r} is outside the field's values")
        positions = concatenate_ranges(starts, lengths)
        taken_weights = np.ones(len(positions), np.float32) if weights is None else weights[positions]
        return values[positions].astype(np.int64), taken_weights

    def _check(self, largest: Array) -> None:
        """Checks the largest id of each field [F] in a batch. Read as unsigned, a negative id is large too."""
        above = largest >= self._sizes
        if above.any():
            index = above.argmax()
            message = f"an id of {self._keys[index]!r} is not in 0 .. `num_embeddings` - 1 (={self._sizes[index] - 1})"
            raise InputError(f"{self._source}: damaged: {message}")


def values_name(number: int) -> str:
    """Returns the name of the array of values of a multi-valued field, given its number among these fields."""
    return f"list_{number}_values"


def weights_name(number: int) -> str:
    """Returns the name of the array of weights of a multi-valued field, given its number among these fields."""
    return f"list_{number}_weights"


def _matrix_name(field: Field) -> str:
    return f"ids_{id_type(field.num_embeddings).__name__}"


@cache
def id_type(num_embeddings: int) -> type[np.generic]:
    """Returns the smallest integer type that holds ids below ``num_embeddings``."""
    return next(kind for kind in ID_TYPES if num_embeddings - 1 <= np.iinfo(kind).max)
