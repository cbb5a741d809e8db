"""Batches made ahead by a background thread."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeVar

from torchrec_mtl.errors import TrainingError

T = TypeVar("T")
TIMEOUT = 600.0  # seconds


@dataclass(frozen=True)
class _End:
    """Comes after the last item."""

    error: BaseException | None = None


def prefetched(items: Iterator[T], depth: int, source: str, first_step: int = 0) -> Iterator[T]:
    """``items``, made by a thread that is up to ``depth`` ahead; its errors come out where they would without it.

    Args:
        items: what to hand out.
        depth: items made and not yet taken, at most; at least 1.
        source: what error messages call them.
        first_step: the number of the first, for error messages.

    Raises:
        TrainingError: if an item is not made within 10 minutes; names the source and the step.

    Example::

        >>> list(prefetched(iter(range(5)), depth=2, source="numbers"))
        [0, 1, 2, 3, 4]
    """
    made: SimpleQueue[T | _End] = SimpleQueue()
    free, over = threading.Semaphore(depth - 1), threading.Event()

    def make() -> None:
        try:
            for item in items:
                made.put(item)
                free.acquire()
                if over.is_set():
                    return
            made.put(_End())
        except BaseException as error:
            made.put(_End(error))

    threading.Thread(target=make, name=f"reader of {source}", daemon=True).start()
    step = first_step
    try:
        while True:
            try:
                item = made.get(timeout=TIMEOUT)
            except Empty:
                told = f"{source}: step {step} (counted from 0) was not read within {TIMEOUT:g} s"
                raise TrainingError(told) from None
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            free.release()
            step += 1
            yield item
    finally:
        over.set()
        free.release()  # the thread may wait for this, and then sees that it is over
