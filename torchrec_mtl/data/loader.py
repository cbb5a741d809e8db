"""Batches of a split, for one process or for each of several."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from torchrec_mtl.data.batches import MultiTaskBatch
from torchrec_mtl.data.split import Split
from torchrec_mtl.errors import InputError


class BatchLoader:
    """Iterates over the batches of one rank.

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

    Raises:
        InputError: if a number is out of range, or ``drop_last`` would leave no step.

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
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("world_size", world_size, 1),
        ):
            if value < least:
                raise InputError(f"`{name}` (={value}) must be at least {least}")
        if not 0 <= rank < world_size:
            raise InputError(f"`rank` (={rank}) must be at least 0 and below `world_size` (={world_size})")
        if drop_last and batch_size * world_size > len(split):
            step = f"`batch_size` (={batch_size}) times `world_size` (={world_size})"
            raise InputError(f"{step} must be at most the rows of the split ({len(split)}) with `drop_last`")
        self.split = split
        self._batch_size, self._drop_last = batch_size, drop_last
        self._shuffle, self._seed, self._epoch, self._step = shuffle, seed, 0, 0
        self._rank, self._world_size = rank, world_size

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration is of; it changes the order of shuffled rows."""
        if epoch != self._epoch:
            self._epoch, self._step = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """The position, and what the order depends on."""
        return {"epoch": self._epoch, "step": self._step, **self._order()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """The next iteration goes on at ``step`` of ``epoch``; later ones begin at the first batch, as always."""
        for name, value in self._order().items():
            if state[name] != value:
                raise InputError(f"`{name}` (={value}) must be that of the saved position ({state[name]})")
        self._epoch, self._step = state["epoch"], state["step"]

    def _order(self) -> dict[str, int]:
        rows_per_step = self._batch_size * self._world_size
        order = {"num_rows": len(self.split), "rows_per_step": rows_per_step, "shuffle": int(self._shuffle)}
        return {**order, "seed": self._seed}

    def __len__(self) -> int:
        """Steps an epoch."""
        full, left = divmod(len(self.split), self._batch_size * self._world_size)
        return full if self._drop_last or not left else full + 1

    def __iter__(self) -> Iterator[MultiTaskBatch]:
        return map(self._batch, self._steps())

    def rows(self) -> Iterator[Tensor]:
        """The rows (int64 [B], positions in the split) of each batch of this rank in this epoch, padding left out."""
        return (self._share(of_step) for of_step in self._steps())

    def _share(self, of_step: Tensor) -> Tensor:
        return of_step.tensor_split(self._world_size)[self._rank]

    def _batch(self, of_step: Tensor) -> MultiTaskBatch:
        own = self._share(of_step)
        num_padded = -(-len(of_step) // self._world_size) - len(own)
        batch = self.split.batch(torch.cat([own, of_step[:num_padded]]))
        return batch.padded(num_padded) if num_padded else batch

    def _steps(self) -> Iterator[Tensor]:
        """The rows of all ranks together."""
        num_rows, step_size = len(self.split), self._batch_size * self._world_size
        order = torch.arange(num_rows)
        if self._shuffle:
            order = torch.from_numpy(np.random.default_rng([self._seed, self._epoch]).permutation(num_rows))
        first, self._step = self._step, 0
        for step in range(first, len(self)):
            yield order[step * step_size : (step + 1) * step_size]
