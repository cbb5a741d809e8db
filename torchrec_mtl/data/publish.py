"""Build a prepared data set once, and let nobody see it before it is whole."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import polars as pl

from torchrec_mtl.data.schema import FILE_NAME, SPLITS, Schema
from torchrec_mtl.errors import InputError


def build_once(directory: str | Path, build: Callable[[Path], Schema]) -> Path:
    """The prepared data set ``directory``, built first if it is not there yet.

    ``build(folder)`` writes ``train.parquet``, ``valid.parquet`` and ``test.parquet`` (and whatever else
    belongs to the data set) into ``folder`` and returns the schema; row counts are added here. ``folder`` is
    a hidden sibling of ``directory`` that takes its name in one rename at the end, so a reader finds either
    nothing or all of it. Builders of one directory queue on a hidden lock file, which stays: the first
    builds, the others find its work. What a killed build left is never read, and the next build removes it.

    Args:
        directory: the data set's directory; its parents are made.
        build: writes the splits, returns the schema.

    Returns:
        ``directory`` as a path.

    Raises:
        InputError: if ``directory`` is there but is not a prepared data set.

    Example::

        >>> import tempfile
        >>> from torchrec_mtl.data import Field, read_split
        >>> from torchrec_mtl.tasks import TaskChain
        >>> def build(folder):
        ...     for split in SPLITS:
        ...         rows = pl.DataFrame({"store": [8, 0], "click": [0, 1]})
        ...         rows.write_parquet(folder / f"{split}.parquet")
        ...     return Schema("shop", [Field("store", 9)], TaskChain(["click"]))
        >>> directory = build_once(f"{tempfile.mkdtemp()}/shop", build)
        >>> len(read_split(directory, "train"))
        2
    """
    directory = Path(directory)
    if not (directory / FILE_NAME).is_file():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _lock(directory.with_name(f".{directory.name}.lock")):
            if not (directory / FILE_NAME).is_file():
                _build(directory, build)
    return directory


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    with file.open("w") as handle:  # closing it unlocks, and so does a kill
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _build(directory: Path, build: Callable[[Path], Schema]) -> None:
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise InputError(f"{directory}: is there but has no {FILE_NAME}; remove it or name another directory")
    prefix = f".{directory.name}.partial-"
    for path in directory.parent.iterdir():
        if path.name.startswith(prefix):  # left by a killed build: this one holds the lock, so nobody else builds
            shutil.rmtree(path)
    folder = directory.with_name(prefix + uuid4().hex)
    folder.mkdir()
    try:
        schema = build(folder)
        num_rows = {split: _num_rows(folder / f"{split}.parquet") for split in SPLITS}
        replace(schema, num_rows=num_rows).save(folder)
        os.rename(folder, directory)
    except BaseException:
        shutil.rmtree(folder)
        raise


def _num_rows(file: Path) -> int:
    return pl.scan_parquet(file, glob=False).select(pl.len()).collect().item()
