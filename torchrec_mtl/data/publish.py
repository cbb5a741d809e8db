"""Build a prepared data set once, and let nobody see it before it is whole."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torchrec_mtl.data.folders import build_folder
from torchrec_mtl.data.parquet import num_rows
from torchrec_mtl.data.reader import map_columns
from torchrec_mtl.data.schema import FILE_NAME, SPLITS, Schema
from torchrec_mtl.errors import InputError


def build_once(directory: str | Path, build: Callable[[Path], Schema]) -> Path:
    """The prepared data set ``directory``, built first if it is not there yet.

    ``build(folder)`` writes ``train.parquet``, ``valid.parquet`` and ``test.parquet`` (and whatever else
    belongs to the data set) into ``folder`` and returns the schema; row counts are added here, every row is
    checked, and the columns that `read_split` maps are laid out. ``folder`` is a hidden sibling of ``directory``
    that takes its name in one rename at the end, so a reader finds either nothing or all of it. Builders of one
    directory queue on a hidden lock file, which stays: the first builds, the others find its work. What a killed
    build left is never read, and the next build removes it.

    Args:
        directory: the data set's directory; its parents are made.
        build: writes the splits, returns the schema.

    Returns:
        ``directory`` as a path.

    Raises:
        InputError: if ``directory`` is there but is not a prepared data set, or what was built breaks a rule of
            `read_split`.

    Example::

        >>> import polars as pl, tempfile
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

    def build_whole(folder: Path) -> None:
        if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
            raise InputError(f"{directory}: is there but has no {FILE_NAME}; remove it or name another directory")
        schema = build(folder)
        schema = replace(schema, num_rows={split: num_rows(folder / f"{split}.parquet") for split in SPLITS})
        schema.save(folder)
        for split in SPLITS:
            map_columns(folder, split, schema)

    build_folder(directory, (directory / FILE_NAME).is_file, build_whole)
    return directory
