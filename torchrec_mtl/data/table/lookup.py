"""Positions of values in a vocabulary, for a batch of one row or of millions."""

from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from torchrec_mtl.data.lists import Array, find
from torchrec_mtl.errors import InputError

_SMALL = 2**16  # values of which a hash table is made anew for each batch


class Lookup:
    """Finds values in a vocabulary.

    Args:
        values: distinct values, strings or int64.

    Example::

        >>> lookup = Lookup(pa.array(["Rome", "Bonn"]))
        >>> lookup.find(pa.array(["Bonn", "Paris", None])).tolist()
        [1, -1, -1]
    """

    def __init__(self, values: pa.Array) -> None:
        if pa.types.is_null(values.type):  # no training row had a value
            values = values.cast(pa.large_string())
        self.values = values.cast(pa.int64() if pa.types.is_integer(values.type) else pa.large_string())

    def __len__(self) -> int:
        return len(self.values)

    def find(self, values: pa.Array) -> Array:
        """Returns the position [V] of each value, int64; -1 where the vocabulary does not have it, or it is null.

        Raises:
            InputError: if these are integers and those are strings, or the reverse.
        """
        kinds = [_kind(values.type), _kind(self.values.type)]
        if kinds[0] != kinds[1] and values.null_count < len(values) and len(self):
            raise InputError(f"values (of type {kinds[0]}) must be of the vocabulary's type, {kinds[1]}")
        if pa.types.is_integer(self.values.type):
            return self._find_integers(values)
        if kinds[0] != kinds[1]:
            return np.full(len(values), -1)
        encoded = values.cast(pa.large_string()).dictionary_encode()
        distinct = encoded.dictionary
        if len(self) <= max(_SMALL, 4 * len(distinct)):
            found = pc.fill_null(pc.index_in(distinct, value_set=self.values), -1).to_numpy(zero_copy_only=False)
        else:  # building a hash table of all values would cost more than looking up these
            positions = self._positions
            found = np.array([positions.get(text, -1) for text in distinct.to_pylist()], np.int64)
        codes = pc.fill_null(encoded.indices, len(distinct)).to_numpy(zero_copy_only=False)
        return np.append(found.astype(np.int64), -1)[codes]

    def _find_integers(self, values: pa.Array) -> Array:
        if not len(self) or not pa.types.is_integer(values.type):
            return np.full(len(values), -1)
        known, order = self._sorted
        wanted = pc.fill_null(values.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
        places = find(known, wanted)
        if values.null_count:
            places[values.is_null().to_numpy(zero_copy_only=False)] = -1
        return places if order is None else np.where(places < 0, -1, order[places])

    @cached_property
    def _positions(self) -> dict[Any, int]:
        return {value: position for position, value in enumerate(self.values.to_pylist())}

    @cached_property
    def _sorted(self) -> tuple[Array, Array | None]:
        """The values in ascending order, and the position of each; None if that is their order."""
        values = self.values.to_numpy()
        if (values[1:] > values[:-1]).all():
            return values, None
        order = values.argsort()
        return values[order], order


def _kind(kind: pa.DataType) -> str:
    return "integer" if pa.types.is_integer(kind) else "string"
