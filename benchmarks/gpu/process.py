"""One step in a process of its own, which cannot harm the others."""

import importlib
import os
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from benchmarks.gpu.steps import Step
from benchmarks.record import Row, in_one_line

ENDED, FAILED = "ended", "failed"
PRELOADED = ["benchmarks.gpu.stack"]  # torch and the operations, once for all; nothing of it may touch the GPU


def _measure(step: Step, pretend: bool, rows: Connection) -> None:
    os.setpgrp()  # with all that it starts
    try:
        importlib.import_module(step.module).measure(rows.send, pretend, *step.arguments)
        rows.send({"what": ENDED})
    except Exception as error:
        traceback.print_exc()
        rows.send({"what": FAILED, "error": in_one_line(error)})


def rows_of(step: Step, pretend: bool, seconds: float, method: str = "forkserver") -> Iterator[Row]:
    """The step's rows as they are measured; in the last one ``what`` is "ended", or "failed" beside an ``error``.

    Args:
        step: what to measure.
        pretend: whether on a CPU.
        seconds: after these it is stopped, with the processes that it has started.
        method: how its process starts: "forkserver", from one that has imported torch, or "spawn", from nothing.
    """
    context = get_context(method)
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(step, pretend, sender))
    began, row = time.monotonic(), Row()
    process.start()
    sender.close()
    try:
        while row.get("what") not in (ENDED, FAILED):
            if not receiver.poll(max(0.0, began + seconds - time.monotonic())):
                row = {"what": FAILED, "error": f"was stopped after {seconds:.0f} s"}
            else:
                row = _received(receiver, process)
            yield {"step": step.name, **row, "at_second": round(time.monotonic() - began, 1)}
    finally:
        receiver.close()
        _stop(process)


def _received(receiver: Connection, process: BaseProcess) -> Row:
    try:
        row: Row = receiver.recv()
    except (EOFError, OSError):  # a row may be cut
        process.join()
        row = {"what": FAILED, "error": f"its process ended with status {process.exitcode}"}
    return row


def _stop(process: BaseProcess) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # it may be too young to have a group
    process.join()
