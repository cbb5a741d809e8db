"""Joins impressions with all their features, as raw ids and then as codes of vocabularies."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from torchrec_mtl.data.encoders import Vocabularies, find
from torchrec_mtl.data.lists import Array, Lists, to_lists
from torchrec_mtl.data.raw.hashes import mix
from torchrec_mtl.datasets.taobao.behaviors import BehaviorLog
from torchrec_mtl.datasets.taobao.layout import AD, PROFILE
from torchrec_mtl.datasets.taobao.tables import MISSING

SINGLE_FIELDS = ("user", *PROFILE, *AD, "pid")
GROUP = "user_id"
HISTORY_FIELDS = {"history_cate": "cate", "history_brand": "brand"}  # field: column of the log


@dataclass(frozen=True)
class Partition:
    """The N impressions of a partition of users, by user and time.

    Args:
        rows: ``time_stamp``, ``user_id``, ``day``, ``line``, ``click`` and optionally ``purchase``.
        ids: raw ids [N] by field, `MISSING` for a missing value; `Lists` for a history.
    """

    rows: pl.DataFrame
    ids: dict[str, Array | Lists]


@dataclass(frozen=True)
class Joiner:
    """Joins the raw tables, one partition of users at a time.

    Args:
        ads, profiles, impressions: tables as `read_ads`, `read_profiles` and `read_impressions` return them.
        log: the behaviours, or None if they are not needed.
    """

    ads: pl.DataFrame
    profiles: pl.DataFrame
    impressions: pl.DataFrame
    log: BehaviorLog | None

    def join_partition(self, number: int) -> Partition:
        """Returns the impressions of the partition with this number."""
        first, last = self.impressions["partition"].to_numpy().searchsorted([number, number + 1])
        impressions = self.impressions[first:last]
        users, ads = impressions["user"].to_numpy(), self.ads[impressions["ad"].to_numpy()]
        profiles = find(self.profiles["userid"].to_numpy(), users)
        ids: dict[str, Array | Lists] = {"user": users, "pid": impressions["pid"].to_numpy()}
        ids |= {name: ads[name].to_numpy() for name in AD}
        for name in PROFILE:
            ids[name] = np.where(profiles < 0, MISSING, self.profiles[name].to_numpy()[profiles])
        rows = impressions.select("time_stamp", pl.col("user").alias(GROUP), "day", "line", "click")
        if self.log is not None:
            records = self.log.load(number)
            if self.log.windows.history_length:
                positions, offsets = self.log.histories(records, impressions)
                ids |= {field: Lists(records[name][positions], offsets) for field, name in HISTORY_FIELDS.items()}
            if self.log.windows.purchase_days:
                bought = self.log.purchases(records, impressions.hstack(ads.select("cate_id", "brand")))
                rows = rows.with_columns(purchase=pl.Series(bought))
        return Partition(rows, ids)


def train_ids(partition: Partition, last_train_day: int) -> dict[str, Array]:
    """Returns all raw ids in the days up to ``last_train_day`` by field, repeated as they occur."""
    in_train = (partition.rows["day"] <= last_train_day).to_numpy()
    present = {}
    for field, ids in partition.ids.items():
        values = ids.values[np.repeat(in_train, np.diff(ids.offsets))] if isinstance(ids, Lists) else ids[in_train]
        present[field] = values[values != MISSING]
    return present


def encode(partition: Partition, vocabularies: Vocabularies) -> pl.DataFrame:
    """Returns the rows of a partition, with a column of codes for each field."""
    columns = {}
    for field, ids in partition.ids.items():
        codes = vocabularies.encode(field, ids.values if isinstance(ids, Lists) else ids)
        columns[field] = to_lists(codes, ids.offsets) if isinstance(ids, Lists) else pl.Series(codes)
    return partition.rows.hstack(pl.DataFrame(columns))


def hash_rows(partition: Partition) -> Array:
    """Returns a uint64 hash of the user, ad and place of each row."""
    hashed = np.zeros(partition.rows.height, np.uint64)
    for salt, field in enumerate(("user", "adgroup_id", "pid")):
        hashed += mix(np.asarray(partition.ids[field]), salt)
    return hashed
