"""The order of an epoch's rows, any part of which can be had without the parts before it."""

import numpy as np
from numpy.typing import NDArray

BLOCKS_PER_WINDOW = 64


class RowOrder:
    """Rows shuffled within windows.

    The split is cut into contiguous blocks of ``window / 64`` rows, the blocks are put in random order, and each 64
    of them, a window, have their rows put in random order. So a window reads 64 contiguous places of a file and mixes
    rows from all over it. A window as large as the split is a full permutation.

    Args:
        num_rows: of the split.
        window: rows of a window, or so: blocks are of one size, but for one row.
        seed, epoch: what the order is drawn from.

    Example::

        >>> order = RowOrder(1000, window=128, seed=0, epoch=3)
        >>> bool((order.part(300, 310) == order.part(0, 1000)[300:310]).all())
        True
        >>> sorted(order.part(0, 1000).tolist()) == list(range(1000))
        True
    """

    def __init__(self, num_rows: int, window: int, seed: int, epoch: int) -> None:
        num_windows = -(-num_rows // window)
        num_blocks = min(num_windows * BLOCKS_PER_WINDOW, num_rows) if num_windows > 1 else 1
        self._edges = np.arange(num_blocks + 1) * num_rows // num_blocks
        # NumPy seeds [a, b] and [a, b, 0] alike, so one window is the permutation of the seed and the epoch
        self._stream = [seed, epoch]
        blocks = np.random.default_rng([*self._stream, num_windows]).permutation(num_blocks)
        self._blocks = np.array_split(blocks, num_windows)
        sizes = [np.diff(self._edges)[blocks].sum() for blocks in self._blocks]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._current = -1
        self._rows = np.empty(0, np.int64)

    def part(self, start: int, stop: int) -> NDArray[np.int64]:
        """The rows at ``start .. stop - 1`` of the order, int64."""
        first, last = np.searchsorted(self._starts, [start, stop - 1], side="right") - 1
        parts = []
        for window in range(first, last + 1):
            begin = self._starts[window]
            parts.append(self._window(window)[max(start - begin, 0) : stop - begin])
        return np.concatenate(parts)

    def _window(self, window: int) -> NDArray[np.int64]:
        if window != self._current:
            blocks = np.sort(self._blocks[window])
            rows = np.concatenate([np.arange(self._edges[block], self._edges[block + 1]) for block in blocks])
            self._rows = np.random.default_rng([*self._stream, window]).permutation(rows)
            self._current = window
        return self._rows
