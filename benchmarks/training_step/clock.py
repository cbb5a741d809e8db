"""Clocks of a step's parts: of the thread or the GPU that trains, and of the reader's thread."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from torchrec_mtl.data import BatchLoader, MultiTaskBatch

READER, REST = "reader, in its own thread", "the rest"
TABLES_FORWARD, TABLES_BACKWARD = "tables, forward", "tables, backward and update"
OVER_ARCH_FORWARD, OVER_ARCH_BACKWARD = "over-arch, forward", "over-arch, backward"
OF_STEP = (
    "waiting for the reader",
    "transfer",
    TABLES_FORWARD,
    OVER_ARCH_FORWARD,
    "loss",
    OVER_ARCH_BACKWARD,
    TABLES_BACKWARD,
    "optimizer",
    REST,
)


class Clock:
    """Gives each moment of a step to the part that was begun last and is not over."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.open: list[str] = []
        self.marks: list[tuple[str, Any]] = []

    def _mark(self) -> None:
        if self.on_gpu:
            now: Any = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = time.thread_time()
        self.marks.append((self.open[-1] if self.open else "", now))

    def begin(self, part: str) -> None:
        """Within the present one, until `end`."""
        self.open.append(part)
        self._mark()

    def end(self) -> None:
        """Of the part begun last."""
        self.open.pop()
        self._mark()

    def turn_to(self, part: str) -> None:
        """The present part is over, and this one is in its place."""
        self.open[-1] = part
        self._mark()

    def take(self) -> dict[str, float]:
        """Seconds of each part since the last call."""
        if self.on_gpu:
            torch.cuda.synchronize()
        seconds = dict.fromkeys(OF_STEP, 0.0)
        for (part, began), (_, ended) in zip(self.marks, self.marks[1:], strict=False):
            if part:
                seconds[part] += began.elapsed_time(ended) / 1e3 if self.on_gpu else ended - began
        self.marks.clear()
        return seconds

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, which is that part."""

        def timed(*arguments: Any, **options: Any) -> Any:
            self.begin(part)
            try:
                return function(*arguments, **options)
            finally:
                self.end()

        return timed


@contextmanager
def reader_seconds() -> Iterator[dict[BatchLoader, list[float]]]:
    """For each loader and each of its batches, all that its thread did since the batch before."""
    seconds: dict[BatchLoader, list[float]] = defaultdict(list)
    last: dict[int, float] = {}  # by thread; an epoch has one
    make = BatchLoader._batch

    def timed(loader: BatchLoader, of_step: Tensor) -> MultiTaskBatch:
        batch = make(loader, of_step)
        now, thread = time.thread_time(), threading.get_ident()
        if now > last.get(thread, now):
            seconds[loader].append(now - last[thread])
        last[thread] = now
        return batch

    with patch.object(BatchLoader, "_batch", timed):
        yield seconds
