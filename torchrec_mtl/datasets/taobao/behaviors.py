"""The behaviour log: put into partitions of users on disk, then looked up for the impressions of one partition.

A behaviour that is kept takes 25 bytes on disk; those of other users, and those that no window reaches, are not kept.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from torchrec_mtl.data.encoders import find
from torchrec_mtl.data.lists import Array, spans
from torchrec_mtl.data.raw.bad_rows import BadRows
from torchrec_mtl.data.raw.files import RawFile
from torchrec_mtl.data.raw.lines import Progress
from torchrec_mtl.datasets.taobao.layout import BEHAVIOR_LOG
from torchrec_mtl.datasets.taobao.lines import read_rows
from torchrec_mtl.datasets.taobao.tables import DAY, PARTITIONS, partition_of

RECORD = np.dtype([("user", "<i4"), ("second", "<i4"), ("cate", "<i8"), ("brand", "<i8"), ("buy", "?")])


@dataclass(frozen=True)
class Windows:
    """What is looked up in the log.

    Args:
        history_length: behaviours of a history, at most; 0 for no histories.
        history_days: how long before the impression they may be.
        purchase_days: how long after a click a purchase may be; 0 for no purchases.
    """

    history_length: int = 0
    history_days: int = 7
    purchase_days: int = 0

    @property
    def needs_log(self) -> bool:
        return bool(self.history_length or self.purchase_days)


class BehaviorLog:
    """The log's partitions.

    Args:
        windows: what will be looked up.
        impressions: of `read_impressions`.
        folder: an empty one, for the partitions.
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
        """Reads the log; InputError on a bad row, as ``bad_rows`` has it."""
        files = [(self._folder / f"{number}.bin").open("wb") for number in range(PARTITIONS)]
        try:
            for rows in read_rows(file, BEHAVIOR_LOG, bad_rows, progress, num_threads):
                records, partitions = self._kept(rows)
                order = np.argsort(partitions, kind="stable")
                bounds = np.searchsorted(partitions[order], np.arange(PARTITIONS + 1))
                for handle, start, stop in zip(files, bounds, bounds[1:], strict=False):
                    records[order[start:stop]].tofile(handle)
                self.num_rows += rows.height
                self.num_kept += len(records)
        finally:
            for handle in files:
                handle.close()

    def _kept(self, rows: pl.DataFrame) -> tuple[Array, Array]:
        """Records of the rows that are needed, and their partitions."""
        second = rows["time_stamp"].to_numpy() - self._origin
        buy = (rows["btag"] == "buy").to_numpy()
        places = find(self._users, rows["user"].to_numpy())
        wanted = np.zeros(rows.height, bool)
        if self.windows.history_length:
            wanted |= (second >= 0) & (second < self._impressions_end)
        if self.windows.purchase_days:
            wanted |= buy & (second >= 0) & (second <= self._end)
        wanted &= places >= 0
        records = np.empty(int(wanted.sum()), RECORD)
        records["user"], records["second"], records["buy"] = places[wanted], second[wanted], buy[wanted]
        for name in ("cate", "brand"):
            records[name] = rows[name].to_numpy()[wanted]
        return records, partition_of(rows["user"].to_numpy()[wanted])

    def load(self, partition: int) -> Array:
        """The records of a partition, by user and time; those of one second in the log's order."""
        records = np.fromfile(self._folder / f"{partition}.bin", RECORD)
        return records[np.argsort(self._keys(records["user"], records["second"]), kind="stable")]

    def histories(self, records: Array, impressions: pl.DataFrame) -> tuple[Array, Array]:
        """The behaviours strictly before each of N impressions, the last ``history_length`` of the window, oldest
        first: their places in ``records`` [V], and offsets [N + 1]."""
        keys = self._keys(records["user"], records["second"])
        users = self._users.searchsorted(impressions["user"].to_numpy())
        seconds = impressions["time_stamp"].to_numpy() - self._origin
        ends = keys.searchsorted(self._keys(users, seconds))
        starts = keys.searchsorted(self._keys(users, seconds - self.windows.history_days * DAY))
        starts = np.maximum(starts, ends - self.windows.history_length)
        return spans(starts, ends - starts), np.concatenate([[0], (ends - starts).cumsum()])

    def purchases(self, records: Array, impressions: pl.DataFrame) -> Array:
        """Whether each impression was clicked and its user bought something of the ad's category and brand within
        the window from then on, both ends included; uint8 [N]. ``impressions`` have ``cate_id`` and ``brand``."""
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
        """Ordered as user and time are."""
        return (users.astype(np.int64) << 32) + seconds
