"""Reads ads, user profiles and impressions into memory."""

import numpy as np
import polars as pl

from torchrec_mtl.data.lists import Array, find
from torchrec_mtl.data.raw.bad_rows import BadRows
from torchrec_mtl.data.raw.files import RawFile
from torchrec_mtl.data.raw.hashes import mix
from torchrec_mtl.data.raw.lines import Progress
from torchrec_mtl.data.rounding import log_round
from torchrec_mtl.datasets.taobao.layout import AD, AD_FEATURE, PROFILE, RAW_SAMPLE, USER_PROFILE, Format
from torchrec_mtl.datasets.taobao.lines import read_rows
from torchrec_mtl.errors import REDACTED, InputError, redacts

DAY = 86_400
BEIJING = 8 * 3600  # seconds ahead of UTC
NUM_DAYS = 8
TEST_DAY = NUM_DAYS - 1
PRICE_RESOLUTION = 4.0
PARTITIONS = 64


def read_ads(file: RawFile, bad_rows: BadRows, progress: Progress, num_threads: int) -> pl.DataFrame:
    """Returns a row per ad, sorted by ``adgroup_id``: its raw ids, and ``price`` after `log_round`."""
    ads = _read_keyed(file, AD_FEATURE, "adgroup_id", bad_rows, progress, num_threads)
    price = pl.Series("price", log_round(ads["price"].to_numpy(), PRICE_RESOLUTION))
    return ads.with_columns(price).select(AD)


def read_profiles(file: RawFile, bad_rows: BadRows, progress: Progress, num_threads: int) -> pl.DataFrame:
    """Returns a row per user with a profile, sorted by ``userid``."""
    return _read_keyed(file, USER_PROFILE, "userid", bad_rows, progress, num_threads).select("userid", *PROFILE)


def read_impressions(
    file: RawFile, ads: pl.DataFrame, bad_rows: BadRows, progress: Progress, num_threads: int
) -> pl.DataFrame:
    """Returns a row per impression, sorted by partition, user, time and line.

    Columns: ``user``, ``time_stamp``, ``ad`` (the row in ``ads``), ``pid``, ``click``, ``line``, ``day`` (0 to 7,
    Beijing time) and ``partition``. A partition has all rows of its users.

    Raises:
        InputError: if the rows do not span eight days, or on a bad row, as `BadRows.add` raises it. A row is also bad
            if its ``nonclk`` is not 1 - ``clk``, or its ad is not in ``ads``.
    """
    known, blocks = ads["adgroup_id"].to_numpy(), []
    for rows in read_rows(file, RAW_SAMPLE, bad_rows, progress, num_threads):
        ad = find(known, rows["adgroup_id"].to_numpy())
        rows = rows.with_columns(ad=pl.Series(ad.astype(np.int32)))
        both = pl.when(pl.col("nonclk") == pl.col("clk")).then(
            pl.format("`nonclk` (={}) must be 1 - `clk`", _shown("nonclk"))
        )
        stray = pl.format("`adgroup_id` (={}) must occur in ad_feature.csv", _shown("adgroup_id"))
        reasons = rows.select(reason=both.when(pl.col("ad") < 0).then(stray))["reason"]
        _put_aside(rows, reasons, file, RAW_SAMPLE, bad_rows)
        good = rows.filter(reasons.is_null())
        blocks.append(
            good.select(
                "user",
                "time_stamp",
                "ad",
                pid=_pid_number(),
                click=pl.col("clk"),
                line=pl.col("line").cast(pl.UInt32),
                partition=pl.Series(partition_of(good["user"].to_numpy())),
            )
        )
    impressions = pl.concat(blocks)
    blocks.clear()
    day = (impressions["time_stamp"].to_numpy() + BEIJING) // DAY
    day -= day.min()
    if day.max() != NUM_DAYS - 1:
        raise InputError(f"{file}: time_stamp must span {NUM_DAYS} days, Beijing time, not {day.max() + 1}")
    impressions = impressions.with_columns(day=pl.Series(day.astype(np.uint8)))
    return impressions.sort("partition", "user", "time_stamp", "line")


def partition_of(users: Array) -> Array:
    """Returns the partition of each user, below `PARTITIONS`, by a hash."""
    return (mix(users, 0) >> np.uint64(58)).astype(np.uint8)


def _pid_number() -> pl.Expr:
    """Returns ``pid`` as an integer: 430548000001007 for ``430548_1007``."""
    parts = pl.col("pid").str.split_exact("_", 1).struct
    return parts.field("field_0").cast(pl.Int64) * 10**9 + parts.field("field_1").cast(pl.Int64)


def _shown(column: str) -> pl.Expr:
    """The values of a column for reasons, see `shown`."""
    return pl.lit(REDACTED) if redacts() else pl.col(column)


def _read_keyed(
    file: RawFile, layout: Format, key: str, bad_rows: BadRows, progress: Progress, num_threads: int
) -> pl.DataFrame:
    """Returns all rows, sorted by ``key``. A row whose key has occurred before is bad."""
    rows = pl.concat(list(read_rows(file, layout, bad_rows, progress, num_threads)))
    repeated = ~rows[key].is_first_distinct()
    reasons = rows.select(reason=pl.when(repeated).then(pl.format(f"`{key}` (={{}}) must occur once", _shown(key))))[
        "reason"
    ]
    _put_aside(rows, reasons, file, layout, bad_rows)
    return rows.filter(~repeated).sort(key)


def _put_aside(rows: pl.DataFrame, reasons: pl.Series, file: RawFile, layout: Format, bad_rows: BadRows) -> None:
    """Hands the rows that have a reason to ``bad_rows``."""
    for position in reasons.is_not_null().arg_true():
        values = rows.row(position, named=True)
        text = ",".join("" if values[name] is None else str(values[name]) for name in layout.schema)
        bad_rows.add(file, values["line"], text, reasons[position])
