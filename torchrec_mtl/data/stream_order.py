"""A shuffled order of the rows of many row groups, in which every rank needs only some of the row groups."""

import numpy as np
from numpy.typing import NDArray

LANES = 64  # a power of two, of which all usual numbers of ranks are divisors


class StreamOrder:
    """The order of the rows of an epoch, the same on any number of ranks.

    The row groups are shuffled, and every so many of them form a window. The rows of a window, one row group after the
    other, are cut into 64 equal slices, and shuffled within each slice. The order takes one row from each slice in
    turn. Rank ``r`` of ``W`` has the positions ``r, r + W, r + 2 W, ...`` of it, and the turns are such that these are
    the rows of ``64 / W`` slices that lie side by side: with ``W`` a power of two up to 64, a rank reads its share of
    the row groups. With another number of ranks, it reads ``W / gcd(W, 64)`` times its share.

    Args:
        group_rows: number of rows of each row group, at least 1.
        window: approximate number of rows that are shuffled together: whole row groups, so that it may be off by less
            than the rows of the largest.
        shuffle: whether rows are shuffled, rather than in the order of the row groups.
        seed, epoch: seeds of the order.

    Example::

        >>> order = StreamOrder(np.array([50, 30, 20, 50]), window=60, shuffle=True, seed=0, epoch=0)
        >>> [groups.tolist() for groups in order.windows], order.starts.tolist()
        ([[2, 0], [1, 3]], [0, 70, 150])
        >>> order.rows(0, np.arange(70)).tolist() == list(range(70))
        False
        >>> sorted(order.rows(0, np.arange(70)).tolist()) == list(range(70))
        True
    """

    def __init__(self, group_rows: NDArray[np.int64], window: int, shuffle: bool, seed: int, epoch: int) -> None:
        groups = (
            np.random.default_rng([seed, epoch]).permutation(len(group_rows)) if shuffle else np.arange(len(group_rows))
        )
        ends = group_rows[groups].cumsum()
        window_of_group = (ends - group_rows[groups]) // window
        firsts = np.flatnonzero(np.diff(window_of_group)) + 1
        self.windows = np.split(groups, firsts)
        self.starts = np.concatenate([[0], ends[firsts - 1], ends[-1:]])
        self._shuffle, self._seed = shuffle, [seed, epoch]

    def rows(self, window: int, positions: NDArray[np.int64]) -> NDArray[np.int32]:
        """Returns the rows at some positions of the order that lie in a window.

        Args:
            window: number of the window.
            positions: positions [N].

        Returns:
            Numbers of the rows in the window, int32 [N]; its row groups are ``windows[window]``.
        """
        places = (positions - self.starts[window]).astype(np.int32)
        if not self._shuffle:
            return places
        num_rows = int(self.starts[window + 1] - self.starts[window])
        rows = np.empty(num_rows, np.int32)
        sizes = (num_rows - 1 - np.arange(LANES)) // LANES + 1
        slices = _reversed_bits()
        starts = np.empty(LANES, np.int64)
        starts[slices] = sizes[slices].cumsum() - sizes[slices]
        for lane in np.unique(places % LANES):
            # for NumPy the seeds [a, b] and [a, b, 0] are the same, hence + 1
            shuffled = np.random.default_rng([*self._seed, window, lane + 1]).permutation(sizes[lane])
            rows[lane::LANES] = starts[lane] + shuffled
        return rows[places]


def _reversed_bits() -> NDArray[np.int64]:
    """The lanes in the order of their slices: lanes that are equal modulo a power of two lie side by side."""
    bits = LANES.bit_length() - 1
    return np.array([int(f"{lane:0{bits}b}"[::-1], 2) for lane in range(LANES)])
