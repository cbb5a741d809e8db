"""Joins impressions with all their features: the raw rows that the declaration reads."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from torchrec_mtl.data.lists import Array, find, to_lists
from torchrec_mtl.data.raw.hashes import is_valid, mix
from torchrec_mtl.datasets.taobao.behaviors import BehaviorLog
from torchrec_mtl.datasets.taobao.layout import PROFILE
from torchrec_mtl.datasets.taobao.tables import TEST_DAY

ROWS_AT_ONCE = 2**15  # of impressions, at least
HISTORY_FIELDS = {"history_cate": "cate", "history_brand": "brand"}  # field: column of the log


@dataclass(frozen=True)
class Joiner:
    """Joins the raw tables, some partitions of users at a time.

    Args:
        ads, profiles, impressions: tables as `read_ads`, `read_profiles` and `read_impressions` return them.
        log: the behaviours, or None if they are not needed.
        seed: seed that draws the rows of valid.
    """

    ads: pl.DataFrame
    profiles: pl.DataFrame
    impressions: pl.DataFrame
    log: BehaviorLog | None
    seed: int

    def groups(self) -> list[list[int]]:
        """Returns the partitions in groups of at least `ROWS_AT_ONCE` impressions, but for the last."""
        sizes = self.impressions.group_by("partition", maintain_order=True).len()
        before = sizes["len"].cum_sum() - sizes["len"]
        groups = sizes.group_by(before // ROWS_AT_ONCE, maintain_order=True).agg("partition")
        return groups["partition"].to_list()

    def join(self, partitions: list[int]) -> pl.DataFrame:
        """Returns the impressions of successive partitions, by user and time, with all that belongs to them.

        Columns: ``user_id``, ``time_stamp``, `PROFILE`, `AD`, ``pid``, ``split``, ``click``, optionally ``purchase``,
        and a list of raw ids for each history.
        """
        first, last = self.impressions["partition"].to_numpy().searchsorted([partitions[0], partitions[-1] + 1])
        impressions = self.impressions[first:last]
        ads = self.ads[impressions["ad"]]
        place = pl.Series(find(self.profiles["userid"].to_numpy(), impressions["user"].to_numpy()))
        profiles = self.profiles.select(pl.col(PROFILE).gather(place.set(place < 0, None)))
        split = pl.Series("split", self._splits(impressions))
        rows = impressions.select("time_stamp", "pid", "click", user_id="user").hstack([split, *ads, *profiles])
        if self.log is not None:
            records = self.log.load(partitions)
            if self.log.windows.history_length:
                positions, offsets = self.log.histories(records, impressions)
                histories = {
                    field: to_lists(records[name][positions], offsets) for field, name in HISTORY_FIELDS.items()
                }
                rows = rows.with_columns(**histories)
            if self.log.windows.purchase_days:
                rows = rows.with_columns(purchase=self.log.purchases(records, impressions.hstack(ads)))
        return rows.rechunk()

    def _splits(self, impressions: pl.DataFrame) -> Array:
        in_test = (impressions["day"] == TEST_DAY).to_numpy()
        in_valid = is_valid(impressions["line"].to_numpy(), self.seed)
        return np.where(in_test, "test", np.where(in_valid, "valid", "train"))

    def hash_rows(self) -> tuple[Array, Array]:
        """Returns a uint64 hash of the user, ad and place of each impression: of the first seven days, and of test."""
        ad = self.ads["adgroup_id"].to_numpy()[self.impressions["ad"].to_numpy()]
        users, places = (self.impressions[name].to_numpy() for name in ("user", "pid"))
        hashed = mix(users, 0) + mix(ad, 1) + mix(places, 2)
        in_test = (self.impressions["day"] == TEST_DAY).to_numpy()
        return hashed[~in_test], hashed[in_test]
