"""What a run leaves when it is told to stop, or meets a batch it cannot use."""

import signal
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from torchrec_mtl.errors import TrainingError
from torchrec_mtl.tasks import TaskForest
from torchrec_mtl.training.step import NonFiniteLossError

_PREFETCHED = 4  # TorchRec's pipelines read at most three batches ahead


class StopRequest:
    """Whether this process was told to stop, by SIGTERM as schedulers do before they take a machine away.

    Example::

        >>> stop = StopRequest()
        >>> with stop.listening():
        ...     signal.raise_signal(signal.SIGTERM)
        >>> stop()
        True
    """

    def __init__(self) -> None:
        self._requested = threading.Event()

    def __call__(self) -> bool:
        """Whether it was."""
        return self._requested.is_set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes SIGTERM as a request; only in the main thread, which alone may."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def request(number: int, frame: FrameType | None) -> None:
            self._requested.set()

        former = signal.signal(signal.SIGTERM, request)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, former)


class Recorded(Iterator[Any]):
    """An iterator that remembers the last few batches, which a pipeline reads before it uses them."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches
        self._recent: deque[Any] = deque(maxlen=_PREFETCHED)
        self._num_read = 0

    def __next__(self) -> Any:
        batch = next(self._batches)
        self._recent.append(batch)
        self._num_read += 1
        return batch

    def batch(self, number: int) -> Any:
        """The ``number``-th batch, from 0; one of the last few."""
        return self._recent[number - self._num_read]


def save_batch(batch: Any, logits: torch.Tensor, file: Path) -> None:
    """Writes a batch and its logits as tensors, for ``torch.load(file)``."""
    sparse = batch.sparse_features
    contents = {
        "dense_features": batch.dense_features,
        "sparse_keys": sparse.keys(),
        "sparse_values": sparse.values(),
        "sparse_lengths": sparse.lengths(),
        "sparse_weights": sparse.weights_or_none(),
        "labels": batch.labels,
        "weights": getattr(batch, "weights", None),
        "logits": logits.cpu(),
    }
    torch.save(contents, file)


def tell_non_finite(
    error: NonFiniteLossError, batch: Any, step: int, tasks: TaskForest, directory: Path, group: dist.ProcessGroup
) -> TrainingError:
    """Saves this rank's batch if its loss is not finite, and says on all ranks where that happened.

    Args:
        error: what this rank raised.
        batch: its batch.
        step: the optimizer step that was not taken.
        tasks: the funnel.
        directory: where the batch goes.
        group: a gloo group of all ranks.
    """
    own = None
    if not error.finite:
        rank = dist.get_rank()
        file = directory / f"non_finite_step_{step}_rank_{rank}.pt"
        directory.mkdir(parents=True, exist_ok=True)
        save_batch(batch, error.logits, file)
        bad = ~(error.logits.cpu() + batch.labels.cpu()).isfinite()
        where = [f"{task} in {int(n)} of {len(bad)} rows" for task, n in zip(tasks, bad.sum(0), strict=True) if n]
        tasks_told = f"logits or labels of {', '.join(where)}" if where else "logits and labels are, the loss is not"
        own = f"rank {rank}: {tasks_told}, saved as {file}"
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, own, group=group)
    return TrainingError(f"the loss of step {step} is not finite; {'; '.join(text for text in told if text)}")
