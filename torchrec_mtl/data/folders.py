"""Directories that are there whole or not at all."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


def build_folder(directory: Path, is_whole: Callable[[], bool], build: Callable[[Path], None]) -> None:
    """Builds ``directory`` unless ``is_whole()``.

    ``build(folder)`` fills ``folder``, a hidden sibling that takes the name in one rename at the end; so a reader
    finds either nothing or all of it. Builders of one directory queue on a hidden lock file, which stays: the first
    builds, the others find its work. What a killed build left is never read, and the next build removes it.
    """
    if is_whole():
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _lock(directory.with_name(f".{directory.name}.lock")):
        if not is_whole():
            _build(directory, build)


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    with file.open("w") as handle:  # closing it unlocks, and so does a kill
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _build(directory: Path, build: Callable[[Path], None]) -> None:
    prefix = f".{directory.name}.partial-"
    for path in directory.parent.iterdir():
        if path.name.startswith(prefix):  # left by a killed build: this one holds the lock, so nobody else builds
            shutil.rmtree(path)
    folder = directory.with_name(prefix + uuid4().hex)
    folder.mkdir()
    try:
        build(folder)
        os.rename(folder, directory)
    except BaseException:
        shutil.rmtree(folder)
        raise
