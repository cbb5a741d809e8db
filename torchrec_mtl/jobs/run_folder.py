"""The folder of a run: a new one, or that of an unfinished run with the same settings; one job at a time holds it."""

import fcntl
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torchrec_mtl.errors import InputError
from torchrec_mtl.files import read_json, to_json, write_whole
from torchrec_mtl.jobs.run_config import first_difference

Settings = Mapping[str, Mapping[str, Any]]  # of each model
_LOCK = ".lock"
CONFIG_FILE = "config.json"
_BEFORE_CONFIG = {_LOCK, CONFIG_FILE + ".partial"}  # what a job that was killed at once may leave


@contextmanager
def run_lock(directory: Path) -> Iterator[None]:
    """Holds the folder of a run. The kernel releases it when the process ends, however it ends.

    Raises:
        InputError: if another process holds it.
    """
    with (directory / _LOCK).open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            message = (
                f"`name` (={directory.name!r}) must not be that of a run in progress, but {handle.read()} trains it"
            )
            raise InputError(message) from None
        except OSError as error:  # a file system without locks
            print(f"warning: {directory}: cannot be locked ({error}); start no other job of this name", file=sys.stderr)
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}")
        handle.flush()
        yield


def is_finished(directory: Path, settings: Settings) -> bool:
    """Whether ``directory`` holds the finished run with ``settings``, by model.

    Raises:
        InputError: if it holds a finished run with other settings.
    """
    if not (directory / "results.json").exists():
        return False
    if difference := first_difference(read_json(directory / CONFIG_FILE), settings):
        raise InputError(f"`name` (={directory.name!r}) is that of a finished run with {difference}; name another")
    return True


def open_run(directory: Path, settings: Settings) -> None:
    """Writes the settings into a folder without any, or compares them with the unfinished run's.

    Raises:
        InputError: if ``directory`` is no run's, or that of a run with other settings.
    """
    file = directory / CONFIG_FILE
    if file.is_file():
        if difference := first_difference(read_json(file), settings):
            raise InputError(
                f"{file}: the unfinished run was made with {difference}; name another, or remove the folder"
            )
    elif others := {path.name for path in directory.iterdir()} - _BEFORE_CONFIG:
        rule = f"must be a new run's, but {directory} is there and is no run: it holds {min(others)!r}"
        raise InputError(f"`name` (={directory.name!r}) {rule}")
    else:
        write_whole(file, to_json(settings, indent=2) + "\n")
