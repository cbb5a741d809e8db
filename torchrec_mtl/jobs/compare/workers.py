"""Makes runs in parallel processes; one that dies does not affect the others."""

import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import TypeVar

import torch

from torchrec_mtl.errors import redacted, redacts

T = TypeVar("T")


def _context() -> ForkServerContext | SpawnContext:
    """On a CPU, workers are forked from a process that has imported what takes seconds; with a GPU they are spawned.

    CUDA does not work in a process that was forked from one that has looked for a GPU, as packages may on import.
    """
    if torch.cuda.is_available():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torchrec_mtl.jobs.compare.runs", "torch.distributed.optim"]
    )  # otherwise imported late
    return context


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    parent.join()
    os._exit(1)


def _serve(connection: Connection, make: Callable[[T], None], log_file: Callable[[T], Path], redact: bool) -> None:
    """Runs a worker, which receives tasks and returns for each its error or None, until it receives None."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    while (task := connection.recv()) is not None:
        file = log_file(task)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        error = None
        try:
            with redacted(redact):
                make(task)
        except Exception as exception:  # reported to the parent, which continues with the other tasks
            traceback.print_exc()
            error = f"{type(exception).__name__}: {exception}"
        sys.stdout.flush()
        connection.send(error)


class _Worker:
    def __init__(self, make: Callable[[T], None], log_file: Callable[[T], Path]) -> None:
        context = _context()
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, log_file, redacts()), daemon=True)
        self.process.start()
        theirs.close()

    def outcome(self) -> tuple[bool, str | None]:
        """Whether the worker is alive, and the error of its task."""
        try:
            return True, self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            return False, f"its process ended with exit code {self.process.exitcode}"


def make_all(
    tasks: Sequence[T], make: Callable[[T], None], log_file: Callable[[T], Path], num_workers: int
) -> Iterator[tuple[T, str | None]]:
    """Makes every task in one of ``num_workers`` processes; yields each task when it ends, with its error if it failed.

    Args:
        tasks: picklable tasks, in order.
        make: importable function that makes a task.
        log_file: function that names the file for a task's output.
        num_workers: number of processes at a time. A process that dies fails only its task, and another replaces it.
    """
    waiting = list(reversed(tasks))
    at_work: dict[Connection, tuple[_Worker, T]] = {}

    def start(worker: _Worker | None) -> None:
        worker = worker or _Worker(make, log_file)
        task = waiting.pop()
        worker.connection.send(task)
        at_work[worker.connection] = (worker, task)

    try:
        while waiting and len(at_work) < num_workers:
            start(None)
        while at_work:
            for connection in wait(list(at_work)):
                assert isinstance(connection, Connection)
                worker, task = at_work.pop(connection)
                alive, error = worker.outcome()
                if waiting:
                    start(worker if alive else None)
                elif alive:
                    worker.connection.send(None)
                yield task, error
    finally:
        for worker, _ in at_work.values():
            worker.process.terminate()
