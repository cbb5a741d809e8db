"""Files and folders that are either whole or absent, and JSON that every reader can read."""

import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from torchrec_mtl.errors import InputError


def make_folder(folder: Path, argument: str) -> None:
    """Makes ``folder`` and its parents where they do not exist.

    Raises:
        InputError: if that is impossible; names the argument that asked for the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        rule = "must be a folder that can be made"
        raise InputError(f"`{argument}` (={str(folder)!r}) {rule}: {error.strerror}") from error


def write_whole(file: Path, text: str) -> None:
    """Writes ``text`` to a temporary sibling, which takes the name ``file`` once it is on disk."""
    partial = file.with_name(file.name + ".partial")
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, file)


def to_json(value: Any, **options: Any) -> str:
    """Writes ``value`` as JSON, which has no NaN and no infinity: null stands for both. ``options`` are `json.dumps`'s.

    Example::

        >>> to_json({"auc": math.nan})
        '{"auc": null}'
    """
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        InputError: if the file is missing, cut, or anything else than a JSON object.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read as JSON ({error})") from error
    return parse_json(content, file)


def parse_json(content: bytes, file: object) -> dict[str, Any]:
    """Parses the content of ``file``, a JSON object.

    Raises:
        InputError: if it is anything else.
    """
    try:
        value = json.loads(content.decode())
    except ValueError as error:
        raise InputError(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{file}: must hold a JSON object, not {type(value).__name__} (={value!r:.60})")
    return value


def digest(file: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    sha256 = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(2**20):
            sha256.update(piece)
    return sha256.hexdigest()


def publish_folder(partial: Path, folder: Path) -> None:
    """Renames the finished folder ``partial`` to ``folder``, with its list of files and its name safely on disk."""
    _sync(partial)
    partial.rename(folder)
    _sync(folder.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def build_folder(folder: Path, is_whole: Callable[[], bool], build: Callable[[Path], None]) -> None:
    """Builds ``folder`` unless ``is_whole()``.

    ``build(partial)`` fills a hidden sibling, which is renamed at the end: a reader finds all of the folder or nothing.
    Processes that build the same folder wait for each other at a hidden lock file, which stays; the first one builds,
    the others use its work. What a killed build left is never read, and the next build removes it.
    """
    if is_whole():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.with_name(f".{folder.name}.lock")):
        if not is_whole():
            _build(folder, build)


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    with file.open("w") as handle:  # released when the handle is closed or the process is killed
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    prefix = f".{folder.name}.partial-"
    for path in folder.parent.iterdir():
        if path.name.startswith(prefix):  # left by a killed build: whoever holds the lock is the only builder
            shutil.rmtree(path)
    partial = folder.with_name(prefix + uuid4().hex)
    partial.mkdir()
    try:
        build(partial)
        publish_folder(partial, folder)
    except BaseException:
        shutil.rmtree(partial)
        raise
