"""The batches of a run, one after the other, and the last few of them again."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

_PREFETCHED = 4  # TorchRec's pipelines read at most three batches ahead


class Batches(Protocol):
    """An epoch of batches on this rank, such as `torchrec_mtl.data.BatchLoader`.

    All ranks have the same number of batches, and batches of the same sizes.
    """

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration, which starts at the first batch if the epoch is a new one."""

    def state_dict(self) -> dict[str, Any]:
        """The position, ``epoch`` and ``step`` (batches of it handed out), and everything else batches depend on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next iteration start at a position; raises `InputError` if the state belongs to other batches."""


class BatchStream(Iterator[Any]):
    """The batches of several epochs as one iterator, since pipelines read ahead.

    It remembers the last few batches, which a pipeline has read but perhaps not used yet.

    Args:
        batches: batches of an epoch.
        epochs: numbers of the epochs.
    """

    def __init__(self, batches: Batches, epochs: Iterable[int]) -> None:
        self._stream = _all_epochs(batches, epochs)
        self._recent: deque[Any] = deque(maxlen=_PREFETCHED)
        self._num_read = 0

    def __next__(self) -> Any:
        batch = next(self._stream)
        self._recent.append(batch)
        self._num_read += 1
        return batch

    def recent(self, number: int) -> Any:
        """The batch with this number, counted from 0; it must be one of the last few."""
        return self._recent[number - self._num_read]


def _all_epochs(batches: Batches, epochs: Iterable[int]) -> Iterator[Any]:
    for epoch in epochs:
        batches.set_epoch(epoch)
        yield from batches
