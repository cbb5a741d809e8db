"""Rows gathered from slabs of row groups, as the arrays of a `Split`."""

from collections.abc import Mapping

import numpy as np

from torchrec_mtl.data.id_columns import LENGTHS, STARTS, values_name, weights_name
from torchrec_mtl.data.lists import Array, concatenate_ranges


def take_rows(arrays: Mapping[str, Array], rows: Array) -> dict[str, Array]:
    """Returns copies of some rows of the arrays of a `Split`, with no other row's lists.

    Example::

        >>> arrays = {"labels": np.array([[1], [0], [1]]), "list_0_values": np.array([5, 6, 7])}
        >>> arrays |= {"list_starts": np.array([[0], [2], [2]]), "list_lengths": np.array([[2], [0], [1]])}
        >>> {name: array.tolist() for name, array in take_rows(arrays, np.array([2])).items()}
        {'labels': [[1]], 'list_starts': [[0]], 'list_lengths': [[1]], 'list_0_values': [7]}
    """
    of_lists = _of_lists(arrays)
    taken = {name: array.take(rows, axis=0) for name, array in arrays.items() if name not in of_lists}
    for name, number in of_lists.items():
        taken[name] = arrays[name][concatenate_ranges(taken[STARTS][:, number], taken[LENGTHS][:, number])]
    if of_lists:
        taken[STARTS] = taken[LENGTHS].cumsum(axis=0) - taken[LENGTHS]
    return taken


class WindowRows:
    """Arrays of a `Split` with a number of rows, filled slab by slab.

    Args:
        num_rows: number of rows of all slabs together.
    """

    def __init__(self, num_rows: int) -> None:
        self._num_rows, self._filled = num_rows, 0
        self._arrays: dict[str, Array] = {}
        self._of_lists: dict[str, list[Array]] = {}

    def append(self, slab: Mapping[str, Array], num_rows: int) -> None:
        """Appends the ``num_rows`` rows of a slab."""
        rows, of_lists = slice(self._filled, self._filled + num_rows), _of_lists(slab)
        for name, array in slab.items():
            if name not in of_lists:
                if name not in self._arrays:
                    self._arrays[name] = np.empty((self._num_rows, *array.shape[1:]), array.dtype)
                self._arrays[name][rows] = array
        for name, number in of_lists.items():
            parts = self._of_lists.setdefault(name, [])
            if name == values_name(number):
                self._arrays[STARTS][rows, number] += sum(map(len, parts))
            parts.append(slab[name])
        self._filled += num_rows

    def arrays(self) -> dict[str, Array]:
        """Returns the arrays, when all rows are there; call it once."""
        for name in list(self._of_lists):
            self._arrays[name] = np.concatenate(self._of_lists.pop(name))
        return self._arrays


def _of_lists(arrays: Mapping[str, Array]) -> dict[str, int]:
    """The arrays that have an element for each id of a list, and the number of the field among multi-valued ones."""
    num_lists = arrays[LENGTHS].shape[1] if LENGTHS in arrays else 0
    names = [(name(number), number) for number in range(num_lists) for name in (values_name, weights_name)]
    return {name: number for name, number in names if name in arrays}
