"""Batches of a split, for one process or for each of several."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchrec_mtl.data.batches import MultiTaskBatch
from torchrec_mtl.data.prefetch import prefetched
from torchrec_mtl.data.row_order import RowOrder
from torchrec_mtl.data.split import Split
from torchrec_mtl.errors import InputError

PREFETCHED = 2  # batches


class BatchLoader:
    """Iterates over the batches of one rank; a background thread makes them ahead.

    In each step all ranks together take the next ``batch_size * world_size`` rows, each an equal part. The
    last step shares out what is left, as evenly as it can; a rank that gets one row less than another has a padded
    one in its place, so that all ranks take the same number of steps with batches of the same size, as sharded
    tables need. Every row is handed out exactly once an epoch, unless ``drop_last`` leaves out that last step.

    Args:
        split: the rows.
        batch_size: rows a rank a step.
        shuffle: whether rows come in an order drawn from ``seed`` and the epoch, the same on all ranks, or in
            that of the split.
        seed: what the order is drawn from; at least 0.
        rank, world_size: which of how many processes this is.
        drop_last: whether to leave out a last step of fewer than ``batch_size * world_size`` rows.
        shuffle_window: rows that are shuffled together, see `RowOrder`; all by default. For a split larger than
            memory, some that fit: a few million.
        pin_memory: whether batches lie in page-locked memory, for CUDA.

    Raises:
        InputError: if a number is out of range, or ``drop_last`` would leave no step.
        TrainingError: while iterating, if a batch is not read within 10 minutes; names the split and the step.

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
    ) -> None:
        window = len(split) if shuffle_window is None else shuffle_window
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("world_size", world_size, 1),
            ("shuffle_window", window, 1),
        ):
            if value < least:
                raise InputError(f"`{name}` (={value}) must be at least {least}")
        if not 0 <= rank < world_size:
            raise InputError(f"`rank` (={rank}) must be at least 0 and below `world_size` (={world_size})")
        if drop_last and batch_size * world_size > len(split):
            step = f"`batch_size` (={batch_size}) times `world_size` (={world_size})"
            raise InputError(f"{step} must be at most the rows of the split ({len(split)}) with `drop_last`")
        self.split = split
        self._step_size, self._drop_last = batch_size * world_size, drop_last
        self._shuffle, self._seed, self._window = shuffle, seed, min(window, len(split))
        self._rank, self._world_size, self._pin_memory = rank, world_size, pin_memory
        self._epoch = self._step = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration is of; it changes the order of shuffled rows."""
        if epoch != self._epoch:
            self._epoch, self._step = epoch, 0

    def state_dict(self) -> dict[str, int | str | None]:
        """The position, and what the order depends on; the number of ranks is no part of it."""
        return {"epoch": self._epoch, "step": self._step, **self._order()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next iteration goes on at ``step`` of ``epoch``; later ones begin at the first batch, as always.

        What came before that step is not read.

        Raises:
            InputError: if the state is of other rows, another order, other steps or another preparation's ids.
        """
        for name, value in self._order().items():
            if state.get(name) != value:
                raise InputError(f"`{name}` (={value}) must be that of the saved position ({state.get(name)})")
        self._epoch, self._step = state["epoch"], state["step"]

    def _order(self) -> dict[str, int | str | None]:
        order = {"seed": self._seed, "shuffle_window": self._window} if self._shuffle else {"seed": -1}
        rows = {"num_rows": len(self.split), "vocabulary_digest": self.split.schema.vocabulary_digest}
        return {**rows, "rows_per_step": self._step_size, **order}

    def __len__(self) -> int:
        """Steps an epoch."""
        full, left = divmod(len(self.split), self._step_size)
        return full if self._drop_last or not left else full + 1

    def __iter__(self) -> Iterator[MultiTaskBatch]:
        first, self._step = self._step, 0
        batches = map(self._batch, self._steps(self._epoch, first))  # the epoch of now, though the thread begins later
        return prefetched(batches, PREFETCHED, self.split.source, first)

    def rows(self) -> Iterator[Tensor]:
        """The rows (int64 [B], positions in the split) of each batch of this rank in this epoch, padding left out."""
        return map(self._share, self._steps(self._epoch, 0))

    def _share(self, of_step: Tensor) -> Tensor:
        return of_step.tensor_split(self._world_size)[self._rank]

    def _batch(self, of_step: Tensor) -> MultiTaskBatch:
        own = self._share(of_step)
        num_padded = -(-len(of_step) // self._world_size) - len(own)
        batch = self.split.batch(torch.cat([own, of_step[:num_padded]]))
        batch = batch.padded(num_padded) if num_padded else batch
        return batch.pin_memory() if self._pin_memory else batch

    def _steps(self, epoch: int, first: int) -> Iterator[Tensor]:
        """The rows of all ranks together in each step."""
        num_rows = len(self.split)
        order = RowOrder(num_rows, self._window, self._seed, epoch) if self._shuffle else None
        for step in range(first, len(self)):
            start, stop = step * self._step_size, min((step + 1) * self._step_size, num_rows)
            yield torch.from_numpy(np.arange(start, stop) if order is None else order.part(start, stop))
