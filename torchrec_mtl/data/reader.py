"""Read a split of a prepared data set, of any size: its columns are laid out once and memory-mapped."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from torchrec_mtl.data import parquet
from torchrec_mtl.data.id_columns import STARTS, list_values
from torchrec_mtl.data.mapped import ArrayWriter, map_arrays
from torchrec_mtl.data.schema import SPLITS, Schema
from torchrec_mtl.data.split import Split
from torchrec_mtl.errors import InputError
from torchrec_mtl.files import build_folder

FOLDER = ".columns"
ORIGIN = "parquet.json"
LAYOUT = 2  # of the columns; those of another are laid out again


def read_split(
    directory: str | Path, split: str, schema: Schema | None = None, fields: Sequence[str] | None = None
) -> Split:
    """``<directory>/<split>.parquet``, checked, as memory-mapped columns.

    The first reading checks every row and lays the columns out in ``<directory>/.columns``, a slab of rows at a
    time; later ones, and other processes, map them. A file that was replaced is laid out again. So a split may be
    larger than memory, and all processes of a machine share what is in memory.

    Args:
        directory: a prepared data set.
        split: "train", "valid" or "test".
        schema: that of ``directory`` by default.
        fields: the keys of the batches, in this order; all fields by default.

    Raises:
        InputError: if a file is missing, cut short or not of this schema, or a row breaks a rule: an id that
            is null, negative or outside its field's; a dense value or weight that is not finite, a negative
            weight; a label other than 0 and 1, missing where its weight is not 0, or without a step that it
            implies. Names the file, the column, the row (counted from 0) and the value. Also if the columns'
            files are cut short, changed or damaged, or cannot be written.

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
    return Split.from_arrays(schema, map_arrays(folder), keys, str(folder))


def map_columns(directory: Path, split: str, schema: Schema) -> Path:
    """The folder of the split's columns, laid out first if it is not there or of another file."""
    file = directory / f"{split}.parquet"
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    status = file.stat()
    origin = json.dumps({"layout": LAYOUT, "size": status.st_size, "mtime_ns": status.st_mtime_ns})
    columns = json.dumps(asdict(replace(schema, name="", num_rows={}, notes={})))
    digest = hashlib.sha256(columns.encode()).hexdigest()[:8]  # another schema's columns are others
    folder = directory / FOLDER / f"{split}-{digest}"

    def is_current() -> bool:
        return (folder / ORIGIN).is_file() and (folder / ORIGIN).read_text() == origin

    def lay_out(partial: Path) -> None:
        with ArrayWriter(partial) as writer:
            _append_slabs(file, split, schema, writer)
        (partial / ORIGIN).write_text(origin)
        shutil.rmtree(folder, ignore_errors=True)  # of a file that was replaced

    try:
        build_folder(folder, is_current, lay_out)
    except OSError as error:
        told = f"{directory / FOLDER}: the columns of {file.name} cannot be laid out there"
        raise InputError(f"{told} ({error.strerror})") from error
    return folder


def _append_slabs(file: Path, split: str, schema: Schema, writer: ArrayWriter) -> None:
    """Checks the file's rows, slab by slab, and appends their columns."""
    num_lists = sum(field.multi_valued for field in schema.fields)
    num_values = np.zeros(num_lists, np.int64)  # so far
    for slab in parquet.read_slabs(file, schema, schema.num_rows.get(split)):
        arrays = dict(slab.arrays)
        if num_lists:
            arrays[STARTS] = arrays[STARTS] + num_values
            num_values += [len(arrays[list_values(number)]) for number in range(num_lists)]
        writer.append(arrays)
