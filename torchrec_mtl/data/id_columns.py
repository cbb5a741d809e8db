"""Ids of many fields, packed into few arrays and gathered row by row into KeyedJaggedTensors."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.data.lists import Array, Lists, spans
from torchrec_mtl.data.schema import Field
from torchrec_mtl.errors import InputError

ID_TYPES = (np.uint8, np.int16, np.int32, np.int64)
STARTS, LENGTHS = "list_starts", "list_lengths"


def pack_ids(fields: Sequence[Field], ids: Mapping[str, Array | Lists]) -> dict[str, Array]:
    """Named arrays with the ids of N rows, each field's in the smallest integer type that holds them.

    What a row has lies together, so that a shuffled batch touches few cache lines, or few pages of a file.
    Single-valued fields of one type share a matrix [N, fields]; the multi-valued ones have two, ``list_starts`` and
    ``list_lengths``, and their values [V] and weights [V].

    Args:
        fields: the fields.
        ids: field -> ids [N]; of a multi-valued one, its lists. Already checked.
    """
    arrays: dict[str, Array] = {}
    matrices: dict[str, list[Array]] = {}
    for field in fields:
        column, own_type = ids[field.name], id_type(field.num_embeddings)
        if not isinstance(column, Lists):
            matrices.setdefault(_matrix(field), []).append(column.astype(own_type))
            continue
        lists, which = column.shared()
        number = len(matrices.setdefault(STARTS, []))
        matrices[STARTS].append(lists.offsets[which].astype(np.int64))
        matrices.setdefault(LENGTHS, []).append(np.diff(lists.offsets)[which].astype(np.int32))
        arrays[list_values(number)] = lists.values.astype(own_type)
        if lists.weights is not None:
            arrays[_list_weights(number)] = lists.weights
    return {**arrays, **{name: np.stack(columns, axis=1) for name, columns in matrices.items()}}


class IdColumns:
    """Gathers from the arrays of `pack_ids`.

    Args:
        fields: those packed.
        arrays: in memory or memory-mapped.
        keys: names of the fields to gather, in the order of the KeyedJaggedTensors' keys.
        source: what error messages call the arrays.
    """

    def __init__(self, fields: Sequence[Field], arrays: Mapping[str, Array], keys: Sequence[str], source: str) -> None:
        self._keys, self._arrays, self._source = list(keys), arrays, source
        place = {key: place for place, key in enumerate(keys)}
        sizes = {field.name: field.num_embeddings for field in fields}
        self._sizes = np.array([sizes[key] for key in keys], np.uint64)
        self._matrices: list[tuple[list[int], list[int], Array]] = []  # places, columns there, ids [N, fields]
        for name in {_matrix(field): None for field in fields if not field.multi_valued}:
            there = [field.name for field in fields if not field.multi_valued and _matrix(field) == name]
            columns = [column for column, key in enumerate(there) if key in place]
            self._matrices.append(([place[there[column]] for column in columns], columns, arrays[name]))
        lists = [field.name for field in fields if field.multi_valued]
        self._lists = [(place[key], number) for number, key in enumerate(lists) if key in place]
        self._weighted = any(_list_weights(number) in arrays for _, number in self._lists)
        self._ones, self._positions = torch.ones(0, dtype=torch.int64), torch.arange(1)

    def gather(self, rows: Tensor) -> KeyedJaggedTensor:
        """The ids of ``rows`` (int64 [B]), one key a field.

        Raises:
            InputError: on an id outside its field's or a list outside its values, which only a damaged file can hold.
        """
        ids = np.zeros((len(self._keys), len(rows)), np.int64)
        for places, columns, matrix in self._matrices:
            taken = matrix.take(rows.numpy(), axis=0).T
            ids[places] = taken if len(columns) == len(taken) else taken[columns]
        if self._lists:
            return self._with_lists(ids, rows.numpy())
        self._check(ids.view(np.uint64).max(axis=1, initial=0))
        values = torch.from_numpy(ids.reshape(-1))
        lengths, offsets = self._one_each(len(values))
        return KeyedJaggedTensor(self._keys, values, lengths=lengths, offsets=offsets, stride=len(rows))

    def _with_lists(self, ids: Array, rows: Array) -> KeyedJaggedTensor:
        """``ids`` [F, B], with zeros where the multi-valued fields' lists are to come."""
        columns: list[Array] = list(ids)
        lengths = np.ones_like(ids)
        weights = [np.ones(len(rows), np.float32)] * len(columns)
        starts_of_all = self._arrays[STARTS].take(rows, axis=0)
        lengths_of_all = self._arrays[LENGTHS].take(rows, axis=0)
        for place, number in self._lists:
            lengths[place] = lengths_of_all[:, number]
            columns[place], weights[place] = self._list(place, number, starts_of_all[:, number], lengths[place])
        self._check(np.array([column.view(np.uint64).max(initial=0) for column in columns]))
        return KeyedJaggedTensor(
            self._keys,
            torch.from_numpy(np.concatenate(columns)),
            weights=torch.from_numpy(np.concatenate(weights)) if self._weighted else None,
            lengths=torch.from_numpy(lengths.reshape(-1)),
            stride=len(rows),
        )

    def _list(self, place: int, number: int, starts: Array, lengths: Array) -> tuple[Array, Array]:
        """Values (int64) and weights (1 if there are none) of lists of a field, one after the other."""
        values, weights = self._arrays[list_values(number)], self._arrays.get(_list_weights(number))
        if len(starts) and (min(starts.min(), lengths.min()) < 0 or (starts + lengths).max() > len(values)):
            raise InputError(f"{self._source}: damaged: a list of {self._keys[place]!r} is outside the field's values")
        places = spans(starts, lengths)
        of_ids = np.ones(len(places), np.float32) if weights is None else weights[places]
        return values[places].astype(np.int64), of_ids

    def _check(self, largest: Array) -> None:
        """The fields' largest ids [F] in this batch, read without a sign: then a negative one is large too."""
        above = largest >= self._sizes
        if above.any():
            place = above.argmax()
            told = f"an id of {self._keys[place]!r} is not in 0 .. `num_embeddings` - 1 (={self._sizes[place] - 1})"
            raise InputError(f"{self._source}: damaged: {told}")

    def _one_each(self, num_ids: int) -> tuple[Tensor, Tensor]:
        """Lengths [num_ids] and offsets [num_ids + 1] of single ids, views of what all batches share."""
        if len(self._ones) < num_ids:
            self._ones, self._positions = torch.ones(num_ids, dtype=torch.int64), torch.arange(num_ids + 1)
        return self._ones[:num_ids], self._positions[: num_ids + 1]


def list_values(number: int) -> str:
    """The array of values of the multi-valued field with this number among those."""
    return f"list_{number}_values"


def _list_weights(number: int) -> str:
    return f"list_{number}_weights"


def _matrix(field: Field) -> str:
    return f"ids_{id_type(field.num_embeddings).__name__}"


def id_type(num_embeddings: int) -> type[np.generic]:
    """The smallest type that holds ids below ``num_embeddings``."""
    return next(kind for kind in ID_TYPES if num_embeddings - 1 <= np.iinfo(kind).max)
