"""A run that hangs: every rank leaves its stack in the run's folder and ends.

Ranks wait for each other in every step, so that one that is stuck stops all, and no message says which one it is.
"""

import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TextIO

import torch.distributed as dist

TIMEOUT = timedelta(minutes=10)
_LOOKS = 60  # that a thread takes at its process within a timeout
_progress = 0


def going_on() -> None:
    """Notes that this process goes on: a step, a batch of an evaluation or a block of a table is done.

    Example::

        >>> going_on()
    """
    global _progress
    _progress += 1


@contextmanager
def watched(directory: Path, timeout: timedelta = TIMEOUT) -> Iterator[None]:
    """Ends this process with status 1 if nothing calls `going_on` for ``timeout``, and leaves its stack.

    The stacks of all threads are added to ``stack_rank_<n>.txt`` in ``directory``; the sentence that names the file is
    the last one that the process prints. Ranks that wait for the same one do this within a twentieth of ``timeout``
    of each other. Operations of process groups should wait longer than that, see `longest_wait`. C++ code that holds
    Python's lock leaves its stack too, but only another process can end it, as torchrun does. Time during which the
    whole process was stopped, by Ctrl-Z or a scheduler, does not count.

    Args:
        directory: folder of the run.
        timeout: longest time without a call of `going_on`.

    Example::

        >>> import tempfile
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> with tempfile.TemporaryDirectory() as folder, watched(Path(folder)):
        ...     going_on()
        >>> dist.destroy_process_group()
    """
    file = directory / f"stack_rank_{dist.get_rank()}.txt"
    ended = threading.Event()
    with file.open("a") as stream:
        thread = threading.Thread(target=_watch, args=(ended, timeout.total_seconds(), stream), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            faulthandler.cancel_dump_traceback_later()
            if not os.fstat(stream.fileno()).st_size:
                file.unlink(missing_ok=True)


def longest_wait(timeout: timedelta) -> timedelta:
    """How long a rank should wait for the others in one operation: a tenth longer, for `watched` to come first.

    Example::

        >>> longest_wait(TIMEOUT).total_seconds()
        660.0
    """
    return timeout * 1.1


def _watch(ended: threading.Event, timeout: float, stream: TextIO) -> None:
    every, looked = timeout / _LOOKS, time.monotonic()
    seen, without = _progress, 0.0
    while not ended.wait(every):
        faulthandler.dump_traceback_later(timeout, file=stream)  # in C, for when this thread cannot run
        now = time.monotonic()
        since, looked = now - looked, now
        without = without + min(since, 2 * every) if _progress == seen else 0.0  # more: the process was stopped
        seen = _progress
        if without > timeout:
            _end(timeout, every, stream)


def _end(timeout: float, every: float, stream: TextIO) -> None:
    faulthandler.dump_traceback_later(4 * every, exit=True, file=stream)  # even if nothing can be printed
    what = f"has not gone on for {timeout:g} s"
    print(f"{datetime.now():%Y-%m-%d %H:%M:%S} process {os.getpid()} on {socket.gethostname()} {what}", file=stream)
    stream.flush()
    faulthandler.dump_traceback(stream)
    print(f"error: rank {dist.get_rank()} {what}; its stack is in {stream.name}", file=sys.stderr, flush=True)
    time.sleep(2 * every)  # until the other ranks have done the same, since torchrun then ends them
    os._exit(1)
