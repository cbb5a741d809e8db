"""The columns of the Complete Journey funnel, each from the raw tables.

Raw keys are integers: ``household``, ``store``, ``product``, ``line`` (one product type of one manufacturer),
``type`` (of product, within its category), ``category``, ``manufacturer``, ``week`` (from 1). ``rows`` are
exposures: one (``household``, ``store``, ``week``), a *visit*, and one ``line``. Functions that add columns
keep the rows and their order. A *bucket* is the number of edges that a value reaches.
"""

from collections.abc import Sequence
from types import MappingProxyType

import numpy as np
import polars as pl

VISIT = ("household", "store", "week")
FRONT_BACK_AND_WRAP = ("D", "F", "H", "L")  # flyer pages, as `mailer_location` codes them
NO_CATEGORY = "NA"
DISPLAY_BY_PROMINENCE = pl.Enum(
    list("13245679A0")
)  # store front and front end cap first, 0 (no display) last
PROFILE = (
    "age",
    "income",
    "home_ownership",
    "marital_status",
    "household_size",
    "household_comp",
    "kids_count",
)
_WEEKS = (1, 2, 3, 5, 9, 17, 33)
_RECENCY = (1, 2, 3, 5, 9, 17)
EDGES = MappingProxyType(
    {
        **{f"hh_{key}_weeks": _WEEKS for key in ("active", "store", "cat", "type", "line", "manu")},
        **{f"hh_{key}recency": _RECENCY for key in ("", "cat_", "type_", "line_")},
        "hh_spend": (5, 10, 20, 30, 45, 60, 80, 110, 150),
        "hh_deal_share": (0, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7),
        "hh_private_share": (0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4),
        "line_skus": (2, 3, 5, 9, 17, 33, 65, 129),
        "line_pop4": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
        "line_price": (0, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5, 7, 10, 15),
        "flyer_skus": (2, 3, 5, 9, 17, 33),
    }
)


def bucket(field: str, value: pl.Expr) -> pl.Expr:
    """The number of the field's ``EDGES`` that ``value`` reaches; 0 where ``value`` is null."""
    return (
        pl.sum_horizontal((value >= edge).fill_null(False) for edge in EDGES[field])
        .cast(pl.Int16)
        .alias(field)
    )


def pack(columns: Sequence[str]) -> pl.Expr:
    """Non-negative keys below 2**20 (a last one called ``week``: below 2**6) as one integer, in their order."""
    packed = pl.lit(0, pl.Int64)
    for column in columns:
        packed = packed * (2**6 if column == "week" else 2**20) + pl.col(column)
    return packed


def catalogue(products: pl.DataFrame) -> pl.DataFrame:
    """One row a product: its keys, and the names behind them.

    The name of a type contains its category's, for some types occur under two categories and buying in a type
    must imply buying in its category.
    """
    named = products.with_columns(pl.col("product_category", "product_type").fill_null(NO_CATEGORY)).select(
        "department",
        "brand",
        pl.col("product_id").cast(pl.Int32).alias("product"),
        pl.col("manufacturer_id").cast(pl.Int32).alias("manufacturer"),
        pl.col("product_category").alias("category_name"),
        pl.format("{} / {}", "product_category", "product_type").alias("type_name"),
    )
    return named.with_columns(
        pl.col("category_name").rank("dense").cast(pl.Int32).alias("category"),
        pl.col("type_name").rank("dense").cast(pl.Int32).alias("type"),
        (pl.struct("type_name", "manufacturer").rank("dense").cast(pl.Int32) - 1).alias("line"),
    )


def purchase_log(transactions: pl.LazyFrame, products: pl.DataFrame) -> pl.DataFrame:
    """One row a purchased item: who, where, when, what, how many units, cents paid, discounted, private brand."""
    keys = pl.col("household_id", "store_id", "product_id", "week", "quantity")
    log = transactions.select(
        keys.cast(pl.Int32).name.replace("_id$", ""),
        (pl.col("sales_value") * 100).round().cast(pl.Int64).alias("cents"),
        (pl.col("retail_disc") > 0).cast(pl.Int64).alias("discounted"),
        pl.lit(1, pl.Int64).alias("items"),
    )
    private = (pl.col("brand") == "Private").cast(pl.Int64).alias("private")
    keys_of_product = products.lazy().select("product", "line", "type", "category", "manufacturer", private)
    return log.join(keys_of_product, on="product").drop("product").collect()


def flyer_lines(promotions: pl.LazyFrame, products: pl.DataFrame) -> pl.DataFrame:
    """One row a line on the front, back or wrap page of a store's flyer of a week.

    ``mailer_location`` is the page (the first of D, F, H, L where products of the line are on several),
    ``display_location`` the most prominent place in the store where one of them is displayed, ``flyer_skus`` the
    bucket of how many of the line's products the flyer has.
    """
    with_category = products.lazy().filter(pl.col("category_name") != NO_CATEGORY).select("product", "line")
    featured = (
        promotions.filter(pl.col("mailer_location").is_in(FRONT_BACK_AND_WRAP))
        .select(
            pl.col("product_id", "store_id", "week").cast(pl.Int32).name.replace("_id$", ""),
            pl.col("mailer_location").cast(pl.Enum(FRONT_BACK_AND_WRAP)),
            pl.col("display_location").cast(DISPLAY_BY_PROMINENCE),
        )
        .join(with_category, on="product")
    )
    lines = featured.group_by("store", "week", "line").agg(
        pl.col("mailer_location", "display_location").min(), flyer_skus=pl.col("product").n_unique()
    )
    return lines.with_columns(bucket("flyer_skus", pl.col("flyer_skus"))).collect(engine="streaming")


def line_attributes(products: pl.DataFrame, lines: pl.Series) -> pl.DataFrame:
    """One row a line of ``lines``: its keys, names, commonest department and brand, bucket of its products' number."""
    keys = ("type", "category", "manufacturer", "type_name", "category_name")
    return (
        products.filter(pl.col("line").is_in(lines.implode()))
        .group_by("line")
        .agg(
            pl.col(keys).first(),
            pl.col("department", "brand").mode().min(),
            pl.len().alias("line_skus"),
        )
        .with_columns(
            bucket("line_skus", pl.col("line_skus")),
            pl.format("{} | {}", "type_name", "manufacturer").alias("line_name"),
        )
    )


def household_profiles(demographics: pl.DataFrame, households: pl.Series) -> pl.DataFrame:
    """One row a household: what is known of it. 801 of the 2,469 have a profile; "NoProfile" marks the others."""
    known = demographics.select(
        pl.col("household_id").cast(pl.Int32).alias("household"), pl.col(PROFILE).fill_null("Unknown")
    )
    return (
        households.to_frame()
        .join(known, on="household", how="left")
        .with_columns(pl.col(PROFILE).fill_null("NoProfile"))
    )


def add_labels(rows: pl.DataFrame, purchases: pl.DataFrame, visits: pl.DataFrame) -> pl.DataFrame:
    """``buy_category``, ``buy_type``, ``buy_line``: the visit's purchases have one such item; ``buy_multi``: two units."""
    bought = purchases.join(visits, on=VISIT).select("visit", "category", "type", "line", "quantity")
    two_units = bought.group_by("visit", "line").agg(pl.col("quantity").sum()).filter(pl.col("quantity") >= 2)
    labels = [
        ("buy_category", "category", bought),
        ("buy_type", "type", bought),
        ("buy_line", "line", bought),
    ]
    labels.append(("buy_multi", "line", two_units))
    return rows.with_columns(
        pack(["visit", key])
        .is_in(source.select(pack(["visit", key])).to_series().implode())
        .cast(pl.UInt8)
        .alias(label)
        for label, key, source in labels
    )


def earlier(
    rows: pl.DataFrame,
    log: pl.DataFrame,
    by: Sequence[str],
    sums: Sequence[str] = (),
    window: int | None = None,
) -> pl.DataFrame:
    """What ``log`` has for each row under the row's ``by`` keys in earlier weeks; one row a row.

    Args:
        rows, log: have the columns ``by`` and ``week``.
        sums: columns of ``log`` to add up.
        window: how many weeks to look back; all of them by default.

    Returns:
        ``weeks``, the number of different weeks; ``recency``, how many weeks ago the last one was, 0 if there was
        none; and the sum of each of ``sums``.
    """
    key = pack([*by, "week"])
    weekly = log.group_by(key.alias("key")).agg(pl.col(sums).sum()).sort("key")
    keys, now = weekly["key"].to_numpy(), rows.select(key).to_series().to_numpy()
    week = rows["week"].to_numpy()
    # Within one group keys differ by weeks, so the earlier weeks of a row are an interval of `keys`.
    start = np.searchsorted(keys, now - (week if window is None else np.minimum(week, window)))
    end = np.searchsorted(keys, now)
    found = {"weeks": end - start, "recency": np.where(end > start, now - keys[end - 1], 0)}
    for name in sums:
        running = np.concatenate([[0], weekly[name].cum_sum().to_numpy()])
        found[name] = running[end] - running[start]
    return pl.DataFrame(found)


def household_history(rows: pl.DataFrame, purchases: pl.DataFrame) -> pl.DataFrame:
    """How often and how recently the household bought at all, in the store, and what the line is of.

    ``hh_<x>_weeks``: bucket of the number of earlier weeks with such a purchase; ``hh_<x>_recency``: bucket of the
    weeks since the last. ``x`` is cat (category), type, line, manu (manufacturer) or store; of any purchase,
    the two are called ``hh_active_weeks`` and ``hh_recency``.
    """
    columns: list[pl.Series] = []
    of = {
        "cat_": "category",
        "type_": "type",
        "line_": "line",
        "manu_": "manufacturer",
        "store_": "store",
        "": None,
    }
    for prefix, key in of.items():
        history = earlier(rows, purchases, ["household"] if key is None else ["household", key])
        wanted = [bucket(f"hh_{prefix or 'active_'}weeks", pl.col("weeks"))]
        if f"hh_{prefix}recency" in EDGES:
            wanted.append(bucket(f"hh_{prefix}recency", pl.col("recency")))
        columns += history.select(wanted).get_columns()
    return pl.DataFrame(columns)


def household_spending(rows: pl.DataFrame, purchases: pl.DataFrame) -> pl.DataFrame:
    """The household's way of shopping in all earlier weeks.

    ``hh_spend``: bucket of dollars a week; ``hh_deal_share``, ``hh_private_share``: bucket of the share of items
    bought at a discount, of a private brand; 0 where it bought nothing before.
    """
    history = earlier(rows, purchases, ["household"], ["cents", "discounted", "private", "items"])
    items = pl.when(pl.col("items") > 0).then("items")
    return history.with_columns(rows["week"]).select(
        bucket("hh_spend", pl.col("cents") / (100 * (pl.col("week") - 1))),
        bucket("hh_deal_share", pl.col("discounted") / items),
        bucket("hh_private_share", pl.col("private") / items),
    )


def line_popularity(rows: pl.DataFrame, purchases: pl.DataFrame) -> pl.DataFrame:
    """What the line sold, to all households.

    ``line_pop4``: bucket of the number of buyers in the last four weeks, a household counted once a week;
    ``line_price``: bucket of the mean dollars a unit in all earlier weeks, 0 where none was sold.
    """
    buyers = purchases.unique(["household", "line", "week"])
    recent = earlier(rows, buyers.with_columns(pl.lit(1).alias("buyers")), ["line"], ["buyers"], window=4)
    sold = earlier(rows, purchases, ["line"], ["cents", "quantity"])
    units = pl.when(pl.col("quantity") > 0).then("quantity")
    return pl.DataFrame(
        [
            recent.select(bucket("line_pop4", pl.col("buyers"))).to_series(),
            sold.select(bucket("line_price", pl.col("cents") / (100 * units))).to_series(),
        ]
    )
