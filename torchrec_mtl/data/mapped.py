"""Arrays in a folder of .npy files, which grow while they are written and are memory-mapped when they are read.

An index has the checksum and the modification time of each file. A file with another time was changed, copied or
swapped with another: it is read through once, which takes 0.3 s per GB beyond the disk's time, and refused if its
checksum is wrong. A file with the right time and size is trusted, so that opening it costs nothing.
"""

import os
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.lib import format as npy

from torchrec_mtl.data.lists import Array
from torchrec_mtl.errors import InputError
from torchrec_mtl.files import read_json, to_json

INDEX_FILE = "arrays.json"
INDEXED = {"dtype", "shape", "checksum", "mtime_ns"}
CHUNK = 2**20  # values


class ArrayWriter:
    """Appends to named arrays along their first axis; the files are valid once it is closed.

    Args:
        folder: empty folder for the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, _GrowingFile] = {}

    def append(self, arrays: Mapping[str, Array]) -> None:
        """Appends to each array by name; an unknown name starts a new array."""
        for name, array in arrays.items():
            if name not in self._files:
                self._files[name] = _GrowingFile(self._folder / f"{name}.npy", array)
            self._files[name].append(array)

    def close(self) -> None:
        """Completes the files and writes the index."""
        now = time.time_ns()
        index = {name: file.close(now + number) for number, (name, file) in enumerate(self._files.items())}
        (self._folder / INDEX_FILE).write_text(to_json(index))

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _GrowingFile:
    """A .npy file whose header is rewritten at the end; NumPy leaves room in it for the first axis to grow."""

    def __init__(self, file: Path, like: Array) -> None:
        self._file, self._handle, self._checksum = file, file.open("wb"), 0
        self._dtype, self._row_shape, self._length = like.dtype, like.shape[1:], 0
        self._write_header()

    def append(self, array: Array) -> None:
        array.tofile(self._handle)
        self._checksum = zlib.crc32(np.ascontiguousarray(array).data, self._checksum) if array.size else self._checksum
        self._length += len(array)

    def close(self, mtime_ns: int) -> dict[str, object]:
        self._handle.seek(0)
        self._write_header()
        self._handle.close()
        os.utime(self._file, ns=(mtime_ns, mtime_ns))
        shape = [self._length, *self._row_shape]
        return {"dtype": self._dtype.str, "shape": shape, "checksum": self._checksum, "mtime_ns": mtime_ns}

    def _write_header(self) -> None:
        shape = (self._length, *self._row_shape)
        header = {"descr": npy.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(self._handle, header)
        self._handle.flush()


def map_arrays(folder: Path) -> dict[str, Array]:
    """Returns the arrays in ``folder``, read-only and memory-mapped.

    Raises:
        InputError: if a file is missing, cut short, or not what the index says; it names the file.
    """
    return {name: _map(folder / f"{name}.npy", expected) for name, expected in read_index(folder).items()}


def read_index(folder: Path) -> dict[str, dict[str, Any]]:
    """The ``dtype``, ``shape``, ``checksum`` and ``mtime_ns`` of each array in ``folder``, by name.

    Raises:
        InputError: if the index is missing, cut short or not one.
    """
    file = folder / INDEX_FILE
    try:
        index = read_json(file)
    except InputError as error:
        raise InputError(f"{error}; {remedy(folder)}") from error
    for name, entry in index.items():
        if not isinstance(entry, dict) or not entry.keys() >= INDEXED:
            raise InputError(f"{file}: damaged: {name!r} must have {sorted(INDEXED)}; {remedy(folder)}")
    if not index:
        raise InputError(f"{file}: damaged: names no array; {remedy(folder)}")
    return index


def _map(file: Path, expected: dict[str, Any]) -> Array:
    try:
        array = np.load(file, mmap_mode="r")
        found = {"dtype": array.dtype.str, "shape": list(array.shape)}
        status = file.stat()
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{file}: cut short or damaged ({error}); {remedy(file.parent)}") from error
    indexed = {name: expected.get(name) for name in found}
    size = status.st_size - array.offset
    if found != indexed or size != array.nbytes:
        message = f"{file}: damaged: has {found} in {size} bytes, but its index says {indexed}"
        raise InputError(f"{message}; {remedy(file.parent)}")
    if status.st_mtime_ns != expected.get("mtime_ns"):
        _check_checksum(file, array, expected)
    return np.asarray(array)


def _check_checksum(file: Path, array: Array, expected: dict[str, Any]) -> None:
    checksum, flat = 0, array.reshape(-1)
    for start in range(0, len(flat), CHUNK):
        checksum = zlib.crc32(flat[start : start + CHUNK].data, checksum)
    if checksum != expected.get("checksum"):
        raise InputError(f"{file}: damaged: its values are not the ones that were written; {remedy(file.parent)}")
    with suppress(OSError):  # on a read-only disk, the file is checked each time
        os.utime(file, ns=(expected["mtime_ns"], expected["mtime_ns"]))


def remedy(folder: Path) -> str:
    """What to do about damaged files in ``folder``."""
    return f"remove {folder}, and it is written again"
