"""Batches of a split for one rank: the order of its rows, and a thread that reads ahead."""

import threading
from collections.abc import Iterator
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.data.batches import MultiTaskBatch
from torchrec_mtl.data.raw.hashes import mix, to_unit_interval
from torchrec_mtl.data.split import Split
from torchrec_mtl.data.steps import StepLoader
from torchrec_mtl.errors import TrainingError, check_positive_share

T = TypeVar("T")
PREFETCHED = 2  # batches
TIMEOUT = 600.0  # seconds
BLOCKS_PER_WINDOW = 64


class BatchLoader(StepLoader):
    """Iterates over the batches of one rank, which a background thread prepares in advance.

    In each step all ranks together take the next ``batch_size * world_size`` rows, an equal part each. The last step
    divides the remaining rows as evenly as possible; a rank that gets one row less than another is given a padded row,
    so that all ranks take the same number of steps with batches of equal size, as sharded tables require. Every row is
    used exactly once an epoch, unless ``drop_last`` leaves out that last step.

    With ``negative_rate``, a step has fewer rows: rows without a label of 1 are kept with this probability, by a hash
    of ``seed``, the epoch and the row, so others in each epoch and the same on any number of ranks. Each kept one has
    ``1 / negative_rate`` times its weight. So the value and gradient of every loss that is a sum over rows are in
    expectation those of all rows, for any tasks, and probabilities are right without a correction afterwards. The other
    way, to train without these weights and correct the logits, needs a funnel of one root, and cross entropy. Where a
    model has a free probability for each x both give the same; a logistic regression's slope has 7 % less variance with
    it at a click rate of .01 and a ``negative_rate`` of .1, where both have more than from all rows: 38 % with weights.

    Args:
        split: rows to read.
        batch_size: number of rows in a step of one rank.
        shuffle: whether rows come in a random order drawn from ``seed`` and the epoch, the same on all ranks, rather
            than in the order of the split.
        seed: seed of the order, at least 0.
        rank, world_size: number of this process, and of all processes.
        drop_last: whether to leave out a last step of fewer than ``batch_size * world_size`` rows.
        shuffle_window: number of rows that are shuffled together, see `RowOrder`; all rows by default. For a split
            larger than memory, choose a number that fits, such as a few million.
        pin_memory: whether batches lie in page-locked memory, for CUDA.
        negative_rate: share of the rows without a label of 1 that are kept, above 0 and at most 1. Steps, positions and
            ``num_rows_of_all`` count all rows.
        with_groups: whether batches have the groups of their rows, if the data have groups; few losses read them.

    Raises:
        InputError: if a number is out of range, or ``drop_last`` would leave no step.
        TrainingError: while iterating, if a batch is not read within 10 minutes; it names the split and the step.

    Example::

        >>> from torchrec_mtl.data import Field, Schema
        >>> from torchrec_mtl.tasks import TaskChain
        >>> schema = Schema("shop", [Field("store", 9)], TaskChain(["click"]))
        >>> split = Split(schema, {"store": [4, 5, 6, 7, 8]}, labels=[[0], [1], [0], [0], [1]])
        >>> loader = BatchLoader(split, batch_size=2)
        >>> [batch.sparse_features.values().tolist() for batch in loader]
        [[4, 5], [6, 7], [8]]
        >>> len(BatchLoader(split, batch_size=2, drop_last=True))
        2
    """

    @checked
    def __init__(
        self,
        split: Split,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        shuffle_window: int | None = None,
        pin_memory: bool = False,
        negative_rate: float = 1.0,
        with_groups: bool = True,
    ) -> None:
        check_positive_share(negative_rate=negative_rate)
        window = len(split) if shuffle_window is None else shuffle_window
        super().__init__(split, batch_size, shuffle, seed, rank, world_size, drop_last, window, pin_memory, with_groups)
        self.split, self._negative_rate = split, negative_rate

    def __iter__(self) -> Iterator[MultiTaskBatch]:
        first, self._step = self._step, 0
        epoch = self._epoch  # even if the thread starts later
        batches = (self._batch(rows, epoch) for rows in self._steps(epoch, first))
        return prefetched(batches, PREFETCHED, self.split.source, first)

    def rows(self) -> Iterator[Tensor]:
        """Yields the positions in the split (int64 [B]) of the rows of each batch of this epoch, without padding."""
        epoch = self._epoch
        return (self._rank_rows(self._kept(rows, epoch)[0]) for rows in self._steps(epoch, 0))

    def groups(self) -> Iterator[Tensor] | None:
        """Yields the groups (int64 [B]) of the rows of each batch, without padding; None if the split has no groups."""
        of_row = self.split.groups
        return None if of_row is None else (of_row[rows] for rows in self.rows())

    def _rank_rows(self, step_rows: Tensor) -> Tensor:
        return step_rows.tensor_split(self._world_size)[self._rank]

    def _batch(self, step_rows: Tensor, epoch: int) -> MultiTaskBatch:
        kept, importance = self._kept(step_rows, epoch)
        rank_rows = self._rank_rows(kept)
        num_padded = -(-len(kept) // self._world_size) - len(rank_rows)
        batch = self.split.batch(torch.cat([rank_rows, kept[:num_padded]]), self._with_groups)
        if importance is not None:
            of_rank = torch.cat([self._rank_rows(importance), importance[:num_padded]])[:, None]
            batch.weights = of_rank.expand_as(batch.labels) * (1 if batch.weights is None else batch.weights)
        batch = batch.padded(num_padded) if num_padded else batch
        batch.num_rows_of_all = len(step_rows)
        return batch.pin_memory() if self._pin_memory else batch

    def _kept(self, step_rows: Tensor, epoch: int) -> tuple[Tensor, Tensor | None]:
        """Returns the rows of a step that are used, and their importance, None if it is 1; at least one row, of
        importance 0 if none is to be used."""
        if self._negative_rate == 1:
            return step_rows, None
        rows, arrays = step_rows.numpy(), self.split.arrays
        positive = arrays["labels"][rows] == 1
        if "weights" in arrays:
            positive &= arrays["weights"][rows] != 0
        salt = int(np.random.SeedSequence([self._seed, epoch]).generate_state(1, np.uint64)[0]) >> 1
        is_drawn = to_unit_interval(mix(rows, salt)) < self._negative_rate
        importance = np.where(positive.any(1), 1.0, is_drawn / self._negative_rate)
        used = importance > 0
        used[0] |= not used.any()
        return step_rows[used], torch.from_numpy(importance[used].astype(np.float32))

    def _steps(self, epoch: int, first: int) -> Iterator[Tensor]:
        """Yields the rows of each step, all ranks together, before any are left out."""
        num_rows = len(self.split)
        order = RowOrder(num_rows, self._window, self._seed, epoch) if self._shuffle else None
        for step in range(first, len(self)):
            start, stop = step * self._step_size, min((step + 1) * self._step_size, num_rows)
            yield torch.from_numpy(np.arange(start, stop) if order is None else order.part(start, stop))


class RowOrder:
    """A shuffled order of rows; any part of it can be computed without the parts before.

    The split is cut into contiguous blocks of ``window / 64`` rows, the blocks are shuffled, and every 64 of them form
    a window whose rows are shuffled. So a window reads 64 contiguous pieces of a file and mixes rows from all over it.
    A window as large as the split gives a full permutation.

    Args:
        num_rows: number of rows in the split.
        window: approximate number of rows in a window; block sizes differ by at most one row.
        seed, epoch: seeds of the order.

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
        # for NumPy the seeds [a, b] and [a, b, 0] are the same: one window is the permutation of seed and epoch
        self._stream = [seed, epoch]
        blocks = np.random.default_rng([*self._stream, num_windows]).permutation(num_blocks)
        self._blocks = np.array_split(blocks, num_windows)
        sizes = [np.diff(self._edges)[blocks].sum() for blocks in self._blocks]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._current = -1
        self._rows = np.empty(0, np.int64)

    def part(self, start: int, stop: int) -> NDArray[np.int64]:
        """Returns the rows at the positions ``start .. stop - 1`` of the order, int64."""
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


@dataclass(frozen=True)
class _End:
    """The end of the items, and the error that caused it, if any."""

    error: BaseException | None = None


def prefetched(
    items: Iterator[T], depth: int, source: str, first_step: int = 0, item_name: str = "step"
) -> Iterator[T]:
    """Yields ``items``, which a thread computes up to ``depth`` items ahead.

    An error of the thread is raised in place of the item that it was computing.

    Args:
        items: items to yield.
        depth: largest number of items computed but not yet yielded, at least 1.
        source: name of the items in error messages.
        first_step: number of the first item in error messages.
        item_name: what an item is called there.

    Raises:
        TrainingError: if an item is not ready within 10 minutes; it names the source and the item.

    Example::

        >>> list(prefetched(iter(range(5)), depth=2, source="numbers"))
        [0, 1, 2, 3, 4]
    """
    queue: SimpleQueue[T | _End] = SimpleQueue()
    free_slots, stopped = threading.Semaphore(depth - 1), threading.Event()

    def compute_items() -> None:
        try:
            for item in items:
                queue.put(item)
                free_slots.acquire()
                if stopped.is_set():
                    return
            queue.put(_End())
        except BaseException as error:
            queue.put(_End(error))

    target = partial(copy_context().run, compute_items)  # so that `redacted` holds there too
    threading.Thread(target=target, name=f"reader of {source}", daemon=True).start()
    step = first_step
    try:
        while True:
            try:
                item = queue.get(timeout=TIMEOUT)
            except Empty:
                message = f"{source}: {item_name} {step} (counted from 0) was not read within {TIMEOUT:g} s"
                raise TrainingError(message) from None
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            free_slots.release()
            step += 1
            yield item
    finally:
        stopped.set()
        free_slots.release()  # wakes a waiting thread, which then stops
