"""Requests to stop, and batches that a run cannot use."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from torchrec_mtl.errors import TrainingError, redacts
from torchrec_mtl.tasks import TaskForest
from torchrec_mtl.training.step import NonFiniteLossError


class Stopped(BaseException):
    """SIGTERM came while there was nothing to save; only the program itself catches it."""


class StopRequest:
    """Whether this process was asked to stop by SIGTERM, which schedulers send before they take a machine away.

    Example::

        >>> stop = StopRequest()
        >>> with stop.listening():
        ...     signal.raise_signal(signal.SIGTERM)
        >>> stop()
        True
    """

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._at_once = False

    def __call__(self) -> bool:
        """Whether a request has come."""
        return self._requested.is_set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes SIGTERM as a request, in the main thread; other threads may not set signal handlers."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def request(number: int, frame: FrameType | None) -> None:
            self._requested.set()
            if self._at_once:
                raise Stopped

        former = signal.signal(signal.SIGTERM, request)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, former)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raises `Stopped` within the block as soon as a request has come, for work that leaves nothing half done.

        Example::

            >>> stop = StopRequest()
            >>> with stop.listening(), stop.at_once():
            ...     signal.raise_signal(signal.SIGTERM)
            Traceback (most recent call last):
            torchrec_mtl.training.faults.Stopped
        """
        self._at_once = True
        try:
            if self():
                raise Stopped
            yield
        finally:
            self._at_once = False


def save_batch(batch: Any, logits: torch.Tensor, file: Path) -> None:
    """Writes a batch and its logits as tensors that ``torch.load(file)`` reads.

    Within `torchrec_mtl.errors.redacted`, the ids are None, and dense features and weights of ids are powers of ten, by
    which a huge one is found.
    """
    sparse, hidden = batch.sparse_features, redacts()
    contents = {
        "dense_features": _magnitudes(batch.dense_features) if hidden else batch.dense_features,
        "sparse_keys": sparse.keys(),
        "sparse_values": None if hidden else sparse.values(),
        "sparse_lengths": sparse.lengths(),
        "sparse_weights": _magnitudes(sparse.weights_or_none()) if hidden else sparse.weights_or_none(),
        "labels": batch.labels,
        "weights": getattr(batch, "weights", None),
        "logits": logits.cpu(),
    }
    torch.save(contents, file)


def _magnitudes(values: torch.Tensor | None) -> torch.Tensor | None:
    return None if values is None else values.sign() * 10 ** values.abs().log10().floor()


def non_finite_rows(
    error: NonFiniteLossError, batch: Any, tasks: TaskForest, group: dist.ProcessGroup, file: Path | None = None
) -> str:
    """Where all ranks' losses or gradients are not finite: ranks, tasks and numbers of rows.

    All ranks call it.

    Args:
        error: error that this rank raised.
        batch: batch of this rank.
        tasks: funnel of tasks.
        group: gloo group of all ranks.
        file: file to which this rank's batch is saved if its loss or gradient is not finite; None to save nothing.
    """
    finding = None
    if not error.finite:
        logits = error.logits.cpu()
        if tasks.values:
            logits = torch.stack([logits[:, columns].sum(1) for columns in tasks.outputs], dim=1)
        bad = ~(logits + batch.labels.cpu()).isfinite()
        where = [f"{task} in {int(n)} of {len(bad)} rows" for task, n in zip(tasks, bad.sum(0), strict=True) if n]
        what = f"logits or labels of {', '.join(where)}" if where else f"logits and labels are, the {error.what} is not"
        finding = f"rank {dist.get_rank()}: {what}"
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_batch(batch, error.logits, file)
            finding += f", saved as {file}"
    findings: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(findings, finding, group=group)
    return "; ".join(each for each in findings if each)


def non_finite_loss_report(
    error: NonFiniteLossError, batch: Any, step: int, tasks: TaskForest, directory: Path, group: dist.ProcessGroup
) -> TrainingError:
    """Saves this rank's batch if its loss or gradient is not finite, and returns an error that says where that was.

    All ranks call it.

    Args:
        error: error that this rank raised.
        batch: batch of this rank.
        step: number of the optimizer step that was not taken.
        tasks: funnel of tasks.
        directory: folder for the batch.
        group: gloo group of all ranks.
    """
    file = directory / f"non_finite_step_{step}_rank_{dist.get_rank()}.pt"
    where = non_finite_rows(error, batch, tasks, group, file)
    message = f"the {error.what} of step {step} is not finite; {where}"
    if error.num_consecutive:
        message += f"; {error.num_consecutive} batches in a row were skipped, as many as `max_consecutive_skips` allows"
    return TrainingError(message)
