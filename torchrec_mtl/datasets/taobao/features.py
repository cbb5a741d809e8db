"""Impressions with everything that is known of them, as raw ids and then as codes of vocabularies."""

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
HISTORY_FIELDS = {"history_cate": "cate", "history_brand": "brand"}  # field -> column of the log


@dataclass(frozen=True)
class Partition:
    """The N impressions of a partition of users, by user and time.

    Args:
        rows: ``time_stamp``, ``user_id``, ``day``, ``line``, ``click`` and perhaps ``purchase``.
        ids: field -> raw ids [N], `MISSING` where there is none; of a history, lists.
    """

    rows: pl.DataFrame
    ids: dict[str, Array | Lists]


@dataclass(frozen=True)
class Joiner:
    """Joins what was read.

    Args:
        ads, profiles, impressions: see `tables`.
        log: the behaviours, if they are needed.
    """

    ads: pl.DataFrame
    profiles: pl.DataFrame
    impressions: pl.DataFrame
    log: BehaviorLog | None

    def partition(self, number: int) -> Partition:
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
                places, offsets = self.log.histories(records, impressions)
                ids |= {field: Lists(records[name][places], offsets) for field, name in HISTORY_FIELDS.items()}
            if self.log.windows.purchase_days:
                bought = self.log.purchases(records, impressions.hstack(ads.select("cate_id", "brand")))
                rows = rows.with_columns(purchase=pl.Series(bought))
        return Partition(rows, ids)


def train_ids(partition: Partition, last_train_day: int) -> dict[str, Array]:
    """The raw ids that occur in the days up to ``last_train_day``, as often as they do."""
    in_train = (partition.rows["day"] <= last_train_day).to_numpy()
    found = {}
    for field, ids in partition.ids.items():
        values = ids.values[np.repeat(in_train, np.diff(ids.offsets))] if isinstance(ids, Lists) else ids[in_train]
        found[field] = values[values != MISSING]
    return found


def encode(partition: Partition, vocabularies: Vocabularies) -> pl.DataFrame:
    """The partition's rows with a column of codes for each field."""
    columns = {}
    for field, ids in partition.ids.items():
        codes = vocabularies.encode(field, ids.values if isinstance(ids, Lists) else ids)
        columns[field] = to_lists(codes, ids.offsets) if isinstance(ids, Lists) else pl.Series(codes)
    return partition.rows.hstack(pl.DataFrame(columns))


def hashes(partition: Partition) -> Array:
    """A uint64 a row, of its user, ad and place."""
    hashed = np.zeros(partition.rows.height, np.uint64)
    for salt, field in enumerate(("user", "adgroup_id", "pid")):
        hashed += mix(np.asarray(partition.ids[field]), salt)
    return hashed
