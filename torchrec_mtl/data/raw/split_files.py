"""The parquet files of a data set's splits, written row group by row group."""

from pathlib import Path
from types import TracebackType

import polars as pl
import pyarrow.parquet as pq

from torchrec_mtl.data.schema import SPLITS
from torchrec_mtl.errors import InputError

LIST_ROW_GROUP = 8192  # rows with lists of several hundred ids


class SplitFiles:
    """Grows ``train.parquet``, ``valid.parquet`` and ``test.parquet``; ``num_rows`` says how far each is.

    Args:
        folder: where they go.
        long_lists: whether a user's long lists come again row after row.
    """

    def __init__(self, folder: Path, long_lists: bool = False) -> None:
        self.num_rows = dict.fromkeys(SPLITS, 0)
        self._folder, self._long_lists = folder, long_lists
        self._writers: dict[str, pq.ParquetWriter] = {}

    def write(self, split: str, rows: pl.DataFrame) -> None:
        table = rows.to_arrow()
        if split not in self._writers:
            # zstd finds lists that come again, unless a dictionary has packed them into bits
            self._writers[split] = pq.ParquetWriter(
                self._folder / f"{split}.parquet",
                table.schema,
                compression="zstd",
                use_dictionary=not self._long_lists,
            )
        if rows.height:
            self._writers[split].write_table(table, row_group_size=LIST_ROW_GROUP if self._long_lists else None)
            self.num_rows[split] += rows.height

    def check_not_empty(self, raw: str) -> None:
        """InputError if a split has no row; ``raw`` is the folder of what was read."""
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
