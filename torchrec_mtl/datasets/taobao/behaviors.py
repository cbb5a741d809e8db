"""The behaviour log: partitioned by user on disk, then searched for the impressions of one partition at a time.

A behaviour takes 25 bytes on disk. Behaviours of users without impressions, or outside all windows, are not kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from torchrec_mtl.data.lists import Array, concatenate_ranges, find
from torchrec_mtl.data.raw.bad_rows import BadRows
from torchrec_mtl.data.raw.files import RawFile
from torchrec_mtl.data.raw.lines import Progress
from torchrec_mtl.datasets.taobao.layout import BEHAVIOR_LOG
from torchrec_mtl.datasets.taobao.lines import read_rows
from torchrec_mtl.datasets.taobao.tables import DAY, PARTITIONS, partition_of

RECORD = np.dtype([("user", "<i4"), ("second", "<i4"), ("cate", "<i8"), ("brand", "<i8"), ("buy", "?")])


@dataclass(frozen=True)
class Windows:
    """The stretches of the log that belong to an impression.

    Args:
        history_length: largest number of behaviours in a history; 0 for no histories.
        history_days: number of days before the impression that a history covers.
        purchase_days: number of days after a click in which a purchase counts; 0 for no purchases.
    """

    history_length: int = 0
    history_days: int = 7
    purchase_days: int = 0

    @property
    def needs_log(self) -> bool:
        """Whether the log must be read at all."""
        return bool(self.history_length or self.purchase_days)


class BehaviorLog:
    """The log in partitions of users.

    Args:
        windows: windows that will be looked up.
        impressions: impressions as `read_impressions` returns them.
        folder: empty folder for the partitions.

    Attributes:
        num_rows: number of rows read.
        num_kept: number of rows kept.
    """

    def __init__(self, windows: Windows, impressions: pl.DataFrame, folder: Path) -> None:
        self.windows, self._folder = windows, folder
        self._users = impressions["user"].unique().sort().to_numpy()
        seconds = impressions["time_stamp"].to_numpy()
        self._origin = int(seconds.min()) - windows.history_days * DAY * bool(windows.history_length)  # second 0
        self._impressions_end = int(seconds.max()) - self._origin
        self._end = self._impressions_end + windows.purchase_days * DAY
        self.num_rows = self.num_kept = 0

    def partition(self, file: RawFile, bad_rows: BadRows, progress: Progress, num_threads: int) -> None:
        """Reads the log and writes the partitions. Raises `InputError` on a bad row, as `BadRows.add` does."""
        files = [(self._folder / f"{number}.bin").open("wb") for number in range(PARTITIONS)]
        try:
            for rows in read_rows(file, BEHAVIOR_LOG, bad_rows, progress, num_threads):
                records, partitions = self._select(rows)
                order = np.argsort(partitions, kind="stable")
                bounds = np.searchsorted(partitions[order], np.arange(PARTITIONS + 1))
                for handle, start, stop in zip(files, bounds, bounds[1:], strict=False):
                    records[order[start:stop]].tofile(handle)
                self.num_rows += rows.height
                self.num_kept += len(records)
        finally:
            for handle in files:
                handle.close()

    def _select(self, rows: pl.DataFrame) -> tuple[Array, Array]:
        """Returns the records of the rows that are needed, and their partitions."""
        second = rows["time_stamp"].to_numpy() - self._origin
        buy = (rows["btag"] == "buy").to_numpy()
        users = find(self._users, rows["user"].to_numpy())
        kept = np.zeros(rows.height, bool)
        if self.windows.history_length:
            kept |= (second >= 0) & (second < self._impressions_end)
        if self.windows.purchase_days:
            kept |= buy & (second >= 0) & (second <= self._end)
        kept &= users >= 0
        records = np.empty(int(kept.sum()), RECORD)
        records["user"], records["second"], records["buy"] = users[kept], second[kept], buy[kept]
        for name in ("cate", "brand"):
            records[name] = rows[name].to_numpy()[kept]
        return records, partition_of(rows["user"].to_numpy()[kept])

    def load(self, partitions: Sequence[int]) -> Array:
        """Returns the records of partitions by user and time, in the order of the log within a second."""
        records = np.concatenate([np.fromfile(self._folder / f"{number}.bin", RECORD) for number in partitions])
        return records[np.argsort(self._keys(records["user"], records["second"]), kind="stable")]

    def histories(self, records: Array, impressions: pl.DataFrame) -> tuple[Array, Array]:
        """Returns the histories of N impressions as positions in ``records`` [V] and offsets [N + 1].

        A history is the last ``history_length`` behaviours of the window, strictly before the impression, oldest first.
        """
        keys = self._keys(records["user"], records["second"])
        users = self._users.searchsorted(impressions["user"].to_numpy())
        seconds = impressions["time_stamp"].to_numpy() - self._origin
        ends = keys.searchsorted(self._keys(users, seconds))
        starts = keys.searchsorted(self._keys(users, seconds - self.windows.history_days * DAY))
        starts = np.maximum(starts, ends - self.windows.history_length)
        return concatenate_ranges(starts, ends - starts), np.concatenate([[0], (ends - starts).cumsum()])

    def purchases(self, records: Array, impressions: pl.DataFrame) -> Array:
        """Returns the label ``purchase`` of N impressions, uint8 [N].

        It is 1 if the impression was clicked, and the user bought something of the ad's category and brand in the
        window that starts then, both ends included. ``impressions`` must have the columns ``cate_id`` and ``brand``.
        """
        key = ["user", "cate", "brand"]
        bought = records[records["buy"]]
        buys = pl.DataFrame({name: bought[name] for name in (*key, "second")}).cast(pl.Int64).sort("second")
        clicked = impressions.with_row_index("row").filter(pl.col("click") == 1)
        clicked = clicked.select(
            "row",
            user=pl.Series(self._users.searchsorted(clicked["user"].to_numpy())),
            cate="cate_id",
            brand="brand",
            second=pl.col("time_stamp") - self._origin,
        ).sort("second")
        matched = clicked.join_asof(
            buys.with_columns(bought=pl.lit(True)),
            on="second",
            by=key,
            strategy="forward",
            tolerance=self.windows.purchase_days * DAY,
            check_sortedness=False,
        ).filter("bought")
        purchases = np.zeros(impressions.height, np.uint8)
        purchases[matched["row"].to_numpy()] = 1
        return purchases

    def _keys(self, users: Array, seconds: Array) -> Array:
        """Returns int64 keys that sort by user, then by time."""
        return (users.astype(np.int64) << 32) + seconds
