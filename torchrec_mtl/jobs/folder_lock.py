"""One job at a time holds a folder: by the kernel's lock, and between machines that do not share it by a heartbeat."""

import fcntl
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from torchrec_mtl.errors import InputError

LOCK = ".lock"
BEAT, DEAD = 5.0, 30.0  # seconds between heartbeats, and without one until the folder is free
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@contextmanager
def folder_lock(directory: Path, argument: str, what: str) -> Iterator[None]:
    """Holds ``directory`` while the block runs.

    On one machine the kernel releases the lock when the process ends, however it ends. Where a file system has no
    locks, or other machines do not see them, the holder touches the lock file every 5 seconds. A job on another machine
    waits until it sees that, and is refused, or until the last touch is 30 seconds old, and takes over. A process that
    was taken over, because it stood still, ends with status 1 within 5 seconds after it continues.

    Args:
        directory: folder that exists.
        argument: argument that named it.
        what: kind of job for error messages, such as "run".

    Raises:
        InputError: if another process holds it, or it cannot be written.

    Example::

        >>> with tempfile.TemporaryDirectory() as folder, folder_lock(Path(folder), "name", "run"):
        ...     os.listdir(folder)
        ['.lock']
    """
    file, own = directory / LOCK, f"process {os.getpid()} on {socket.gethostname()}\n{_machine()}"
    with _open(file, directory, argument) as handle:
        locked = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refusal(directory, argument, what, file.read_text()) from None
        except OSError as error:
            print(f"warning: {directory}: cannot be locked ({error}), only by heartbeats", file=sys.stderr)
            locked = False
        holder = file.read_text()
        if holder and not (holder.endswith(_machine()) and (locked or not _is_alive(holder))):
            _wait(file, holder, _refusal(directory, argument, what, holder))
        handle.truncate(0)
        handle.write(own)
        handle.flush()
        ended = threading.Event()
        beating = threading.Thread(target=_beat, args=(file, own, ended), daemon=True)
        beating.start()
        try:
            yield
        finally:
            ended.set()
            beating.join()
            if file.is_file() and file.read_text() == own:
                handle.truncate(0)  # other machines need not wait


def _open(file: Path, directory: Path, argument: str) -> TextIO:
    try:
        return file.open("a+")
    except OSError as error:
        rule = f"must be a folder that can be written, but {file} cannot be: {error.strerror}"
        raise InputError(f"`{argument}` (={directory.name!r}) {rule}") from error


def _machine() -> str:
    """What processes that see each other's locks have in common: the running kernel."""
    return _BOOT.read_text().strip() if _BOOT.is_file() else socket.gethostname()


def _is_alive(holder: str) -> bool:
    return Path("/proc", holder.split()[1]).exists()


def _first_line(holder: str) -> str:
    return holder.partition("\n")[0] or "another process"


def _refusal(directory: Path, argument: str, what: str, holder: str) -> InputError:
    rule = f"must not be that of a {what} in progress, but {_first_line(holder)} holds it"
    return InputError(f"`{argument}` (={directory.name!r}) {rule}")


def _age(file: Path) -> float:
    """Seconds since the last heartbeat, by the clock of the file system: those of two machines differ."""
    with tempfile.TemporaryFile(dir=file.parent) as now:
        return os.fstat(now.fileno()).st_mtime - file.stat().st_mtime


def _wait(file: Path, holder: str, refusal: InputError) -> None:
    """Waits until the heartbeat of ``holder`` is too old; raises ``refusal`` if there is a new one."""
    beat, age = file.stat().st_mtime_ns, _age(file)
    if age <= DEAD:
        sign = f"{_first_line(holder)} gave a sign {age:.0f} s ago"
        print(f"{file.parent}: {sign}; without another, it is free in {DEAD - age:.0f} s", flush=True)
    while _age(file) <= DEAD:
        time.sleep(0.5)
        if not file.read_text():
            return
        if file.stat().st_mtime_ns != beat:
            raise refusal


def _beat(file: Path, own: str, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        try:
            holder = file.read_text()
            if holder == own:
                os.utime(file)
        except OSError:  # the file system is away; the next heartbeat finds what happened meanwhile
            continue
        if holder != own:
            message = f"error: {file.parent}: {_first_line(holder)} took over, as this process stood still"
            print(message, file=sys.stderr, flush=True)
            os._exit(1)
