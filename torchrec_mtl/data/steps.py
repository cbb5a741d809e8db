"""The steps of an epoch, shared among ranks, and the position in it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor

from torchrec_mtl.data.batches import MultiTaskBatch
from torchrec_mtl.data.schema import Schema
from torchrec_mtl.errors import InputError, check_at_least


class Rows(Protocol):
    """The rows of a split, in memory or elsewhere."""

    schema: Schema
    source: str

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...


class StepLoader(ABC):
    """Iterates over the batches of one rank.

    Args:
        split: rows to read.
        batch_size: number of rows in a step of one rank.
        shuffle: whether rows come in a random order.
        seed: seed of the order.
        rank, world_size: number of this process, and of all processes.
        drop_last: whether to leave out a last step of fewer than ``batch_size * world_size`` rows.
        shuffle_window: number of rows that are shuffled together.
        pin_memory: whether batches lie in page-locked memory.
        with_groups: whether batches have the groups of their rows, if the data have groups.
    """

    def __init__(
        self,
        split: Rows,
        batch_size: int,
        shuffle: bool,
        seed: int,
        rank: int,
        world_size: int,
        drop_last: bool,
        shuffle_window: int,
        pin_memory: bool,
        with_groups: bool,
    ) -> None:
        check_at_least(1, batch_size=batch_size, world_size=world_size)
        for name, value, least in (("seed", seed, 0), ("shuffle_window", shuffle_window, 1)):  # of any size
            if value < least:
                raise InputError(f"`{name}` (={value}) must be at least {least}")
        if not 0 <= rank < world_size:
            raise InputError(f"`rank` (={rank}) must be at least 0 and below `world_size` (={world_size})")
        if drop_last and batch_size * world_size > len(split):
            step = f"`batch_size` (={batch_size}) times `world_size` (={world_size})"
            raise InputError(f"{step} must be at most the rows of the split ({len(split)}) with `drop_last`")
        self._rows, self._num_rows = split, len(split)
        self._batch_size, self._step_size, self._drop_last = batch_size, batch_size * world_size, drop_last
        self._shuffle, self._seed, self._window = shuffle, seed, min(shuffle_window, len(split))
        self._rank, self._world_size, self._pin_memory = rank, world_size, pin_memory
        self._with_groups = with_groups
        self._epoch = self._step = 0
        self._negative_rate = 1.0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration, on which the order of shuffled rows depends."""
        if epoch != self._epoch:
            self._epoch, self._step = epoch, 0

    def state_dict(self) -> dict[str, int | float | str | None]:
        """Returns the position, and everything that the order depends on; the number of ranks is not part of it."""
        return {"epoch": self._epoch, "step": self._step, **self._order()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Makes the next iteration start at ``step`` of ``epoch``; later iterations start at the first batch.

        Rows before that step are not read.

        Raises:
            InputError: if the state belongs to other rows, another order, another batch size or other vocabularies.
        """
        for name, value in self._order().items():
            if state.get(name) != value:
                raise InputError(f"`{name}` (={value}) must be that of the saved position ({state.get(name)})")
        self._epoch, self._step = state["epoch"], state["step"]

    def _order(self) -> dict[str, int | float | str | None]:
        order = {"seed": self._seed, "shuffle_window": self._window} if self._shuffle else {"seed": -1}
        rows = {"num_rows": self._num_rows, "vocabulary_digest": self._rows.schema.vocabulary_digest}
        steps = {"rows_per_step": self._step_size, "negative_rate": self._negative_rate}
        return {**rows, "fingerprint": self._rows.fingerprint, **steps, **order}

    def __len__(self) -> int:
        """Returns the number of steps in an epoch."""
        full, left = divmod(self._num_rows, self._step_size)
        return full if self._drop_last or not left else full + 1

    @abstractmethod
    def __iter__(self) -> Iterator[MultiTaskBatch]:
        """Yields the batches of the epoch, from the position on."""

    @abstractmethod
    def rows(self) -> Iterator[Tensor]:
        """Yields the positions in the split (int64 [B]) of the rows of each batch of this epoch, without padding."""

    @abstractmethod
    def groups(self) -> Iterator[Tensor] | None:
        """Yields the groups (int64 [B]) of the rows of each batch of this epoch, without padding; None if the data have
        no groups."""
