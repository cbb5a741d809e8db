"""Arrays in a folder of .npy files: appended to while they are written, memory-mapped when they are read."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.lib import format as npy

from torchrec_mtl.data.lists import Array
from torchrec_mtl.errors import InputError

INDEX = "arrays.json"


class ArrayWriter:
    """Appends to named arrays along their first axis; the files are valid once it is closed.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, _GrowingFile] = {}

    def append(self, arrays: Mapping[str, Array]) -> None:
        for name, array in arrays.items():
            if name not in self._files:
                self._files[name] = _GrowingFile(self._folder / f"{name}.npy", array)
            self._files[name].append(array)

    def close(self) -> None:
        index = {name: file.close() for name, file in self._files.items()}
        (self._folder / INDEX).write_text(json.dumps(index))

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _GrowingFile:
    """A .npy file whose header is written again at the end: NumPy leaves room in it for the first axis to grow."""

    def __init__(self, file: Path, like: Array) -> None:
        self._handle = file.open("wb")
        self._dtype, self._row_shape, self._length = like.dtype, like.shape[1:], 0
        self._write_header()

    def append(self, array: Array) -> None:
        array.tofile(self._handle)
        self._length += len(array)

    def close(self) -> dict[str, object]:
        self._handle.seek(0)
        self._write_header()
        self._handle.close()
        return {"dtype": self._dtype.str, "shape": [self._length, *self._row_shape]}

    def _write_header(self) -> None:
        shape = (self._length, *self._row_shape)
        header = {"descr": npy.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(self._handle, header)
        self._handle.flush()


def map_arrays(folder: Path) -> dict[str, Array]:
    """The arrays of ``folder``, read-only and memory-mapped.

    Raises:
        InputError: if a file is missing, cut short, or not what the folder's index says; names the file.
    """
    try:
        index = json.loads((folder / INDEX).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / INDEX}: cannot be read ({error}); remove {folder} and it is made again") from error
    return {name: _map(folder / f"{name}.npy", expected) for name, expected in index.items()}


def _map(file: Path, expected: dict[str, object]) -> Array:
    try:
        array = np.load(file, mmap_mode="r")
        found = {"dtype": array.dtype.str, "shape": list(array.shape)}
        size = file.stat().st_size - array.offset
    except (OSError, ValueError, EOFError) as error:
        told = f"{file}: cut short or damaged ({error})"
        raise InputError(f"{told}; remove {file.parent} and it is made again") from error
    if found != expected or size != array.nbytes:
        told = f"{file}: damaged: has {found} in {size} bytes, but its index says {expected}"
        raise InputError(f"{told}; remove {file.parent} and it is made again")
    return np.asarray(array)
