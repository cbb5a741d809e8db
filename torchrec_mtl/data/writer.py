"""Writes prepared data sets: their splits, row group by row group, and the whole folder at once or not at all."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import polars as pl
import pyarrow.parquet as pq

from torchrec_mtl.argument_types import checked
from torchrec_mtl.data.parquet import count_rows
from torchrec_mtl.data.reader import map_columns
from torchrec_mtl.data.schema import SCHEMA_FILE, SPLITS, Schema
from torchrec_mtl.errors import InputError
from torchrec_mtl.files import build_folder

ROW_GROUP = 2**16  # rows at most, so that a streamed epoch is mixed well in little memory
LIST_ROW_GROUP = 8192  # the same, if rows have lists of up to several hundred ids


@checked
def build_once(directory: str | Path, build: Callable[[Path], Schema]) -> Path:
    """Builds the prepared data set ``directory`` unless it exists, and returns its path.

    Row counts are added to the schema, every row is checked, and the columns that `read_split` maps are written. A
    reader finds the whole data set or nothing, and processes that build the same one wait for the first, see
    `torchrec_mtl.files.build_folder`.

    Args:
        directory: folder of the data set; its parents are made.
        build: ``build(folder)`` writes ``train.parquet``, ``valid.parquet``, ``test.parquet`` and anything else that
            belongs to the data set into ``folder``, and returns the schema. A split that is a folder of parts is not
            checked, and not mapped.

    Raises:
        InputError: if ``directory`` exists but is not a prepared data set, or a row breaks a rule of `read_split`.

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
            raise InputError(f"{directory}: exists but has no {SCHEMA_FILE}; remove it or name another directory")
        schema = build(folder)
        files = {split: folder / f"{split}.parquet" for split in SPLITS}
        parts = {split: sorted(file.glob("*.parquet")) if file.is_dir() else [file] for split, file in files.items()}
        schema = replace(schema, num_rows={split: sum(map(count_rows, parts[split])) for split in SPLITS})
        schema.save(folder)
        for split in SPLITS:
            if not files[split].is_dir():
                map_columns(folder, split, schema)

    build_folder(directory, (directory / SCHEMA_FILE).is_file, build_whole)
    return directory


def write_parquet(rows: pl.DataFrame, file: Path) -> None:
    """Writes a parquet file whose pages have checksums, so that `read_slabs` finds a bit that flipped later."""
    pq.write_table(rows.to_arrow(), file, ROW_GROUP, compression="zstd", write_page_checksum=True)


class SplitFiles:
    """Appends rows to ``train.parquet``, ``valid.parquet`` and ``test.parquet``.

    A row group has at most `ROW_GROUP` rows, or `LIST_ROW_GROUP` with ``long_lists``.

    Args:
        folder: folder of the files.
        long_lists: whether rows have long lists that share many ids with the row before, such as a user's history.

    Attributes:
        num_rows: number of rows written to each split so far.
    """

    def __init__(self, folder: Path, long_lists: bool = False) -> None:
        self.num_rows = dict.fromkeys(SPLITS, 0)
        self._folder, self._long_lists = folder, long_lists
        self._writers: dict[str, pq.ParquetWriter] = {}

    def write(self, split: str, rows: pl.DataFrame) -> None:
        """Appends ``rows`` to the file of ``split``, and creates the file first if need be."""
        table = rows.to_arrow()
        if split not in self._writers:
            # zstd finds repeated lists only if no dictionary has packed their values into bits
            self._writers[split] = pq.ParquetWriter(
                self._folder / f"{split}.parquet",
                table.schema,
                compression="zstd",
                use_dictionary=not self._long_lists,
                write_page_checksum=True,
            )
        if rows.height:
            self._writers[split].write_table(table, LIST_ROW_GROUP if self._long_lists else ROW_GROUP)
            self.num_rows[split] += rows.height

    def check_not_empty(self, raw: str) -> None:
        """Raises `InputError` if a split has no row; ``raw`` is the folder of the raw files."""
        for split, num_rows in self.num_rows.items():
            if not num_rows:
                raise InputError(f"`raw` (={raw!r}): no row is left for {split}")

    def __enter__(self) -> "SplitFiles":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers.values():
            writer.close()
