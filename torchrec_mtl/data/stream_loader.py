"""Batches of a streamed split for one rank: windows of row groups, read ahead in a thread."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.data.batches import MultiTaskBatch
from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.loader import PREFETCHED, prefetched
from torchrec_mtl.data.split import Split
from torchrec_mtl.data.steps import StepLoader
from torchrec_mtl.data.stream_order import StreamOrder
from torchrec_mtl.data.stream_reader import StreamedSplit
from torchrec_mtl.data.stream_window import WindowRows, take_rows

Slabs = Callable[[int], Iterator[tuple[int, dict[str, Array]]]]  # of a row group: numbers of rows, and their arrays


class StreamLoader(StepLoader):
    """Iterates over the batches of one rank, which it reads from parquet files in place: `BatchLoader` for a split that
    is larger than the disk, or elsewhere.

    Steps, ranks and padding are `BatchLoader`'s. With ``shuffle``, the row groups come in a random order, and the rows
    of several row groups, a window, are shuffled together, see `StreamOrder`: the rows of every step are the same on
    any number of ranks, and a position that was saved on one number of ranks is good on another. Each rank reads the
    row groups of which it has rows: if ``world_size`` is a power of two up to 64, those are its share of every window
    and at most two more; without ``shuffle`` each rank reads all row groups. Every row is checked when it is read.

    Memory: let a window have ``n`` rows, ``n < shuffle_window + rows of the largest row group``, and a row take ``b``
    bytes in memory: 1, 2, 4 or 8 for an id, 1 for a label (4 if tasks are values), 4 for a dense value or a weight, 8
    for a group, 12 for a list and the bytes of its ``l`` ids. Then all is at most the sum of ``2 n b / world_size``
    bytes of rows, those in use and those read ahead; ``24 n`` bytes for their order; a row group's bytes, compressed
    and not; 24 bytes for each value of 65,536 rows, or 40 for each of 8,192 if there are lists, which are checked
    together; with lists, ``n l / world_size`` ids once more; and four batches, with 24 bytes for each id, 8 for each
    group and 4 for every other value.

    Args:
        split: rows to read, see `stream_split`.
        batch_size: number of rows in a step of one rank.
        shuffle: whether rows come in a random order drawn from ``seed`` and the epoch, the same on all ranks, rather
            than in the order of the split.
        seed: seed of the order, at least 0.
        rank, world_size: number of this process, and of all processes.
        drop_last: whether to leave out a last step of fewer than ``batch_size * world_size`` rows.
        shuffle_window: approximate number of rows, of all ranks together, that are shuffled together; by default 2^20,
            or four of the largest row groups if these have more. It should be at least four row groups for each rank.
            Without ``shuffle``, a window is one row group.
        pin_memory: whether batches lie in page-locked memory, for CUDA.
        with_groups: whether batches have the groups of their rows, if the data have groups; few losses read them.

    Raises:
        InputError: if a number is out of range, or ``drop_last`` would leave no step; while iterating, if a row breaks
            a rule, see `read_split`.
        TrainingError: while iterating, if the files cannot be read any more, or a window or batch is not read within 10
            minutes.

    Example::

        >>> import polars as pl, tempfile
        >>> from torchrec_mtl.data import Field, Schema, stream_split
        >>> from torchrec_mtl.tasks import TaskChain
        >>> directory = tempfile.mkdtemp()
        >>> Schema("shop", [Field("store", 9)], TaskChain(["click"])).save(directory)
        >>> frame = pl.DataFrame({"store": [4, 5, 6, 7, 8], "click": [0, 1, 0, 0, 1]})
        >>> frame.write_parquet(f"{directory}/train.parquet", row_group_size=2)
        >>> loader = StreamLoader(stream_split(directory, "train"), batch_size=2)
        >>> [batch.sparse_features.values().tolist() for batch in loader]
        [[4, 5], [6, 7], [8]]
    """

    @checked
    def __init__(
        self,
        split: StreamedSplit,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        shuffle_window: int | None = None,
        pin_memory: bool = False,
        with_groups: bool = True,
    ) -> None:
        window = max(2**20, 4 * int(split.group_rows.max())) if shuffle_window is None else shuffle_window
        super().__init__(split, batch_size, shuffle, seed, rank, world_size, drop_last, window, pin_memory, with_groups)
        self._window = self._window if shuffle else 1
        self.split = split
        self._first_rows = np.concatenate([[0], split.group_rows.cumsum()])

    def __iter__(self) -> Iterator[MultiTaskBatch]:
        first, self._step = self._step, 0
        return prefetched(self._batches(self._epoch, first), PREFETCHED, self.split.source, first)

    def rows(self) -> Iterator[Tensor]:
        """Yields the positions in the split (int64 [B]) of the rows of each batch of this epoch, without padding."""

        def numbers(group: int) -> Iterator[tuple[int, dict[str, Array]]]:
            num_rows = int(self.split.group_rows[group])
            yield num_rows, {"rows": self._first_rows[group] + np.arange(num_rows)}

        return self._column(self._epoch, numbers, "rows")

    def groups(self) -> Iterator[Tensor] | None:
        """Yields the groups (int64 [B]) of the rows of each batch of this epoch, without padding; None if the data have
        no groups. Reads only their column."""
        if self.split.schema.group is None:
            return None
        return self._column(self._epoch, self.split.reader().groups, "groups")

    def _column(self, epoch: int, slabs: Slabs, name: str) -> Iterator[Tensor]:
        for arrays, rows, step in self._windows(epoch, 0, slabs):
            for part, num_padded in self._parts(rows, step):
                yield torch.from_numpy(arrays[name][part[: len(part) - num_padded]])

    def _batches(self, epoch: int, first: int) -> Iterator[MultiTaskBatch]:
        """Yields the batches from step ``first`` on."""
        schema, source = self.split.schema, self.split.source
        slabs = self.split.reader().slabs
        windows = self._windows(epoch, first, slabs if self._with_groups else _without_groups(slabs))
        for arrays, rows, step in prefetched(windows, 1, source, item_name="window"):
            window = Split.from_arrays(schema, arrays, schema.field_names, source, self.split.fingerprint)
            for of_window, (part, num_padded) in enumerate(self._parts(rows, step)):
                batch = window.batch(torch.from_numpy(part))
                batch = batch.padded(num_padded) if num_padded else batch
                batch.num_rows_of_all = min(self._step_size, self._num_rows - (step + of_window) * self._step_size)
                yield batch.pin_memory() if self._pin_memory else batch
            del arrays, rows, part, window  # the thread begins a window as soon as this loop asks for one

    def _parts(self, rows: NDArray[np.int64], step: int) -> Iterator[tuple[NDArray[np.int64], int]]:
        """Cuts rows into those of each step, from ``step`` on; and how many of these, at the end, are padding."""
        for start in range(0, len(rows), self._batch_size):
            part = rows[start : start + self._batch_size]
            if self._padded_position() == step * self._step_size:
                yield np.roll(part, -1), 1  # it comes before the other rows of the last step
            else:
                yield part, 0
            step += 1

    def _padded_position(self) -> int | None:
        """The position, the first of the last step, whose row this rank uses as padding; None if it needs none."""
        rows_of_last = self._num_rows - (len(self) - 1) * self._step_size
        is_short = self._rank >= rows_of_last % self._world_size > 0
        return self._num_rows - rows_of_last if is_short and not self._drop_last else None

    def _positions(self, start: int, stop: int) -> NDArray[np.int64]:
        """The positions ``start .. stop - 1`` of the order whose rows this rank uses, rising."""
        own = np.arange(start + (self._rank - start) % self._world_size, stop, self._world_size)
        padded = self._padded_position()
        if padded is None or not start <= padded < stop:
            return own
        return np.insert(own, np.searchsorted(own, padded), padded)

    def _windows(
        self, epoch: int, first: int, slabs: Slabs
    ) -> Iterator[tuple[dict[str, Array], NDArray[np.int64], int]]:
        """Yields arrays with this rank's rows of each window, the numbers of these rows in the order of whole batches,
        and the step of the first batch."""
        order = StreamOrder(self.split.group_rows, self._window, self._shuffle, self._seed, epoch)
        step, end = first, min(self._num_rows, len(self) * self._step_size)
        kept: tuple[int, dict[str, Array]] = (0, {})  # rows that did not fill a batch
        for window, groups in enumerate(order.windows):
            start, stop = max(order.starts[window], first * self._step_size), min(order.starts[window + 1], end)
            if start >= stop:
                continue
            rows = order.rows(window, self._positions(start, stop))
            needed = np.zeros(order.starts[window + 1] - order.starts[window], bool)
            needed[rows] = True
            gathered = WindowRows(kept[0] + len(rows))
            gathered.append(kept[1], kept[0])
            for group, used in zip(groups, self._by_group(needed, groups), strict=True):
                _gather(gathered, slabs(group), used)
            numbers = np.arange(kept[0] + len(rows))
            numbers[kept[0] :] = kept[0] + (needed.cumsum(dtype=np.int32) - 1)[rows]
            arrays = gathered.arrays()
            num_whole = len(numbers) if stop == end else len(numbers) // self._batch_size * self._batch_size
            left = numbers[num_whole:]
            kept = (len(left), take_rows(arrays, left))
            if num_whole:
                yield arrays, numbers[:num_whole], step
            step += num_whole // self._batch_size

    def _by_group(self, rows: Array, groups: Array) -> list[Array]:
        return np.split(rows, self.split.group_rows[groups].cumsum()[:-1])


def _without_groups(slabs: Slabs) -> Slabs:
    """The slabs without the groups of their rows."""

    def others(group: int) -> Iterator[tuple[int, dict[str, Array]]]:
        for num_rows, arrays in slabs(group):
            yield num_rows, {name: array for name, array in arrays.items() if name != "groups"}

    return others


def _gather(gathered: WindowRows, slabs: Iterator[tuple[int, dict[str, Array]]], used: Array) -> None:
    """Appends the ``used`` rows (bool [N]) of a row group; reads no further than the last of them."""
    first, end = 0, int(used.nonzero()[0].max(initial=-1)) + 1
    while first < end:
        num_rows, arrays = next(slabs)
        chosen = used[first : first + num_rows]
        num_chosen = int(np.count_nonzero(chosen))
        if num_chosen:
            gathered.append(arrays if num_chosen == num_rows else take_rows(arrays, chosen.nonzero()[0]), num_chosen)
        first += num_rows
        del arrays  # before the next slab is read
