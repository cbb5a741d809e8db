"""Reads a split of a prepared data set, of any size: its columns are written to files once and memory-mapped."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from torchrec_mtl.argument_types import checked
from torchrec_mtl.data import parquet
from torchrec_mtl.data.fingerprint import columns_text, fingerprint
from torchrec_mtl.data.id_columns import STARTS, values_name
from torchrec_mtl.data.mapped import ArrayWriter, map_arrays, read_index, remedy
from torchrec_mtl.data.schema import SPLITS, Schema
from torchrec_mtl.data.split import Split
from torchrec_mtl.errors import InputError
from torchrec_mtl.files import build_folder, digest, read_json, to_json

COLUMNS_FOLDER = ".columns"
ORIGIN_FILE = "parquet.json"
LAYOUT_VERSION = 3  # columns of another version are written again


@checked
def read_split(
    directory: str | Path, split: str, schema: Schema | None = None, fields: Sequence[str] | None = None
) -> Split:
    """Returns ``<directory>/<split>.parquet``, checked, as memory-mapped columns.

    The first call checks every row and writes the columns to ``<directory>/.columns``, one slab of rows at a time;
    later calls and other processes map them. If the parquet file has other content, they are written again. So a split
    may be larger than memory, and all processes of a machine share what is in memory.

    Args:
        directory: folder of a prepared data set.
        split: name of the split: "train", "valid" or "test".
        schema: schema to read the file with; by default the one in ``directory``.
        fields: keys of the batches, in this order; all fields by default.

    Raises:
        InputError: if a file is missing, cut short or does not fit the schema, or a row breaks a rule: an id is null,
            or outside the range of a field without an ``unknown_row``; a dense value or weight is not finite; a weight
            is negative; a label is not what its task's kind allows (0 or 1), is missing where it counts, or is 1
            without a step that it implies. The message names the file, the column, the row (counted from 0) and the
            value. Also if the files of the columns are cut short, changed or damaged, or cannot be written.

    Example::

        >>> import polars as pl, tempfile, torch
        >>> from torchrec_mtl.data import Field
        >>> from torchrec_mtl.tasks import TaskChain
        >>> directory = tempfile.mkdtemp()
        >>> Schema("shop", [Field("store", 9)], TaskChain(["click"])).save(directory)
        >>> pl.DataFrame({"store": [8, 0], "click": [0, 1]}).write_parquet(f"{directory}/train.parquet")
        >>> read_split(directory, "train").batch(torch.tensor([1])).labels
        tensor([[1.]])
    """
    if split not in SPLITS:
        raise InputError(f"`split` (={split!r}) must be one of {list(SPLITS)}")
    schema = Schema.load(directory) if schema is None else schema
    keys = schema.field_names if fields is None else schema.select(fields).field_names
    folder = map_columns(Path(directory), split, schema)
    arrays, known_as = map_arrays(folder), fingerprint(schema, read_index(folder))
    return Split.from_arrays(schema, arrays, keys, str(folder), known_as, _num_unknown(folder, schema.select(keys)))


def map_columns(directory: Path, split: str, schema: Schema) -> Path:
    """Returns the folder of the split's columns, written first unless it is up to date."""
    file = directory / f"{split}.parquet"
    if not file.exists():
        raise InputError(f"{file}: no such file")
    parquet.check_is_file(file)
    of_schema = hashlib.sha256(columns_text(schema).encode()).hexdigest()[:8]  # each schema has its own columns
    folder = directory / COLUMNS_FOLDER / f"{split}-{of_schema}"

    def is_current() -> bool:
        return _is_of(folder / ORIGIN_FILE, file)

    def write_columns(partial: Path) -> None:
        status, sha256 = _status(file), digest(file)  # before its rows are read: a change in between is then seen
        with ArrayWriter(partial) as writer:
            num_unknown = _append_slabs(file, split, schema, writer)
        origin = {"layout": LAYOUT_VERSION, **status, "sha256": sha256, "num_unknown": num_unknown}
        (partial / ORIGIN_FILE).write_text(to_json(origin))
        shutil.rmtree(folder, ignore_errors=True)  # columns of a parquet file that was replaced

    try:
        build_folder(folder, is_current, write_columns)
    except OSError as error:
        message = f"{directory / COLUMNS_FOLDER}: the columns of {file.name} cannot be written there"
        raise InputError(f"{message} ({error.strerror})") from error
    return folder


def _status(file: Path) -> dict[str, int]:
    """What the system changes whenever a file is written, replaced or copied, even where the modification time is set
    back."""
    status = file.stat()
    return {"size": status.st_size, "mtime": status.st_mtime_ns, "ctime": status.st_ctime_ns, "inode": status.st_ino}


def _is_of(origin_file: Path, file: Path) -> bool:
    """Whether columns were written from ``file`` as it is; its content is read only if its status has changed."""
    try:
        origin = read_json(origin_file)
    except InputError:  # none yet, or damaged: the columns are written again
        return False
    status = _status(file)
    if origin.get("layout") != LAYOUT_VERSION or origin.get("size") != status["size"]:
        return False
    if status == {name: origin.get(name) for name in status}:
        return True
    if origin.get("sha256") != digest(file):
        return False
    partial = origin_file.with_name(f"{ORIGIN_FILE}.{uuid4().hex}")
    with suppress(OSError):  # on a read-only disk, the file is read each time
        partial.write_text(to_json({**origin, **status}))
        os.replace(partial, origin_file)
    return True


def _num_unknown(folder: Path, schema: Schema) -> dict[str, tuple[int, int]]:
    """The attribute ``num_unknown`` of a split, which was counted when its columns were written."""
    file, fields = folder / ORIGIN_FILE, [field for field in schema.fields if field.unknown_row is not None]
    counts: Any = read_json(file).get("num_unknown")
    try:
        return {field.name: (int(counts[field.name][0]), int(counts[field.name][1])) for field in fields}
    except (TypeError, LookupError, ValueError) as error:
        rule = f"must count the unknown ids of {[field.name for field in fields]}"
        raise InputError(f"{file}: damaged: `num_unknown` (={counts!r:.60}) {rule}; {remedy(folder)}") from error


def _append_slabs(file: Path, split: str, schema: Schema, writer: ArrayWriter) -> dict[str, list[int]]:
    """Checks the rows of the file, slab by slab, and appends their columns; returns the sums of `Split.num_unknown`."""
    num_lists = sum(field.multi_valued for field in schema.fields)
    num_values = np.zeros(num_lists, np.int64)  # so far
    num_unknown: dict[str, list[int]] = {}
    for slab in parquet.read_slabs(file, schema, schema.num_rows.get(split)):
        arrays = dict(slab.arrays)
        if num_lists:
            arrays[STARTS] = arrays[STARTS] + num_values
            num_values += [len(arrays[values_name(number)]) for number in range(num_lists)]
        writer.append(arrays)
        for name, counts in slab.num_unknown.items():
            num_unknown[name] = [a + b for a, b in zip(num_unknown.get(name, (0, 0)), counts, strict=True)]
    return num_unknown
