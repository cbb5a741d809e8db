"""Batches of a split, for one process or for each of several."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from torchrec_mtl.data.batches import MultiTaskBatch
from torchrec_mtl.data.split import Split
from torchrec_mtl.errors import InputError


class BatchLoader:
    """Iterates over the batches of one rank.

    In each step all ranks together take the next ``batch_size * world_size`` rows, each an equal part. The
    last step shares out what is left, as evenly as it can; a rank that gets none of it has an empty batch
    (B = 0), so that all ranks take the same number of steps and collective calls line up; TorchRec's sharded
    modules take it. Every row is handed out exactly once an epoch, unless ``drop_last`` leaves out that last
    step.

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

    def set_epoch(self, epoch: int, step: int = 0) -> None:
        """The epoch that the next iteration is of, which changes the order of shuffled rows, and its first step.

        Iterations after it begin at the epoch's first step again.
        """
        self._epoch, self._step = epoch, step

    def identity(self) -> dict[str, int]:
        """What must be the same for a step of an epoch to be the same rows, on any number of ranks."""
        return {
            "num_rows": len(self.split),
            "global_batch_size": self._batch_size * self._world_size,
            "seed": self._seed if self._shuffle else -1,
        }

    def __len__(self) -> int:
        """Steps an epoch."""
        full, left = divmod(len(self.split), self._batch_size * self._world_size)
        return full if self._drop_last or not left else full + 1

    def __iter__(self) -> Iterator[MultiTaskBatch]:
        return map(self.split.batch, self.rows())

    def rows(self) -> Iterator[Tensor]:
        """The rows (int64 [B], positions in the split) of each batch of this rank in this epoch."""
        num_rows, step_size = len(self.split), self._batch_size * self._world_size
        order = torch.arange(num_rows)
        if self._shuffle:
            order = torch.from_numpy(np.random.default_rng([self._seed, self._epoch]).permutation(num_rows))
        first, self._step = self._step, 0
        for step in range(first, len(self)):
            of_step = order[step * step_size : (step + 1) * step_size]
            yield of_step.tensor_split(self._world_size)[self._rank]
