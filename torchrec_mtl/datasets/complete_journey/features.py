"""The columns of the Complete Journey funnel, computed from the raw tables.

Raw keys are integers: ``household``, ``store``, ``week`` (from 1), ``product``, ``manufacturer``, ``category``,
``type`` (of product, within a category) and ``line`` (a type of a manufacturer). A *visit* is a household, a store and
a week with a purchase. ``rows`` are exposures: each is a visit and a line. Functions that take ``rows`` return new
columns in the same order. A *bucket* is the number of the field's ``EDGES`` that a value reaches.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

VISIT = ("household", "store", "week")
NO_NAME = "NA"  # in place of a missing category or type
PAGES = ("D", "F", "H", "L")  # front, back and wrap pages, as `mailer_location` codes them
DISPLAYS = tuple("13245679A0")  # values of `display_location`, the most prominent first; 0 is no display
PROFILE = ("age", "income", "home_ownership", "marital_status", "household_size", "household_comp", "kids_count")
WEEKS_EDGES = (1, 2, 3, 5, 9, 17, 33)
RECENCY_EDGES = (1, 2, 3, 5, 9, 17)
EDGES: dict[str, tuple[float, ...]] = {
    **{f"hh_{name}_weeks": WEEKS_EDGES for name in ("active", "store", "cat", "type", "line", "manu")},
    **{f"hh_{name}recency": RECENCY_EDGES for name in ("", "cat_", "type_", "line_")},
    "hh_spend": (5, 10, 20, 30, 45, 60, 80, 110, 150),
    "hh_deal_share": (0, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7),
    "hh_private_share": (0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4),
    "line_skus": (2, 3, 5, 9, 17, 33, 65, 129),
    "line_pop4": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    "line_price": (0, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5, 7, 10, 15),
    "flyer_skus": (2, 3, 5, 9, 17, 33),
}
# Keys besides the household, name of the field with the number of weeks, name of the field with the recency.
HISTORIES: tuple[tuple[list[str], str, str | None], ...] = (
    ([], "hh_active_weeks", "hh_recency"),
    (["store"], "hh_store_weeks", None),
    (["category"], "hh_cat_weeks", "hh_cat_recency"),
    (["type"], "hh_type_weeks", "hh_type_recency"),
    (["line"], "hh_line_weeks", "hh_line_recency"),
    (["manufacturer"], "hh_manu_weeks", None),
)


def bucket(field: str, value: pl.Expr) -> pl.Expr:
    """Returns the number of edges of ``field`` that ``value`` reaches; 0 for null."""
    reached = [(value >= edge).fill_null(False) for edge in EDGES[field]]
    return pl.sum_horizontal(reached).cast(pl.Int16).alias(field)


def pack(keys: Sequence[str]) -> pl.Expr:
    """Packs keys below 2**20, or 2**6 for ``week``, into one int64 that sorts as the keys do, the first key first."""
    packed = pl.lit(0, pl.Int64)
    for key in keys:
        packed = packed * (2**6 if key == "week" else 2**20) + pl.col(key)
    return packed


def catalogue(products: pl.DataFrame) -> pl.DataFrame:
    """Returns a row per product: its keys and their names.

    The name of a type includes the category: some types occur in two categories, and a purchase in a type must imply
    one in its category.
    """
    names = pl.col("product_category", "product_type").fill_null(NO_NAME)
    named = products.with_columns(names).select(
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
    """Returns a row per item of a receipt: keys, units, cents paid, and 0 or 1 for a discount and a private brand."""
    log = transactions.select(
        *(pl.col(f"{key}_id").cast(pl.Int32).alias(key) for key in ("household", "store", "product")),
        pl.col("week", "quantity").cast(pl.Int32),
        (pl.col("sales_value") * 100).round().cast(pl.Int64).alias("cents"),
        (pl.col("retail_disc") > 0).cast(pl.Int64).alias("discounted"),
        pl.lit(1, pl.Int64).alias("items"),
    )
    private = (pl.col("brand") == "Private").cast(pl.Int64).alias("private")
    keys = products.lazy().select("product", "line", "type", "category", "manufacturer", private)
    return log.join(keys, on="product").drop("product").collect()


def flyer_lines(promotions: pl.LazyFrame, products: pl.DataFrame) -> pl.DataFrame:
    """Returns a row per line on the front, back or wrap page of a store's flyer of a week.

    ``mailer_location``: the first of the pages D, F, H, L that shows the line; ``display_location``: the most prominent
    place in the store that displays one of its products; ``flyer_skus``: bucket of the number of its products on these
    pages.
    """
    lines = products.lazy().filter(pl.col("category_name") != NO_NAME).select("product", "line")
    featured = promotions.filter(pl.col("mailer_location").is_in(PAGES)).select(
        *(pl.col(f"{key}_id").cast(pl.Int32).alias(key) for key in ("product", "store")),
        pl.col("week").cast(pl.Int32),
        "mailer_location",
        pl.col("display_location").replace_strict(DISPLAYS, range(len(DISPLAYS)), return_dtype=pl.Int8),
    )
    by_line = featured.join(lines, on="product").group_by("store", "week", "line")
    first_place = pl.col("mailer_location", "display_location").min()
    flyers = by_line.agg(first_place, pl.col("product").n_unique().alias("flyer_skus"))
    return flyers.with_columns(
        pl.col("display_location").replace_strict(range(len(DISPLAYS)), DISPLAYS, return_dtype=pl.String),
        bucket("flyer_skus", pl.col("flyer_skus")),
    ).collect(engine="streaming")


def line_attributes(products: pl.DataFrame, lines: pl.DataFrame) -> pl.DataFrame:
    """Returns a row per line of ``lines``: its keys and their names.

    ``department``, ``brand`` (national or private): the most common value among the products of the line;
    ``line_skus``: bucket of the number of these products.
    """
    keys = ("type", "category", "manufacturer", "type_name", "category_name")
    most_common = pl.col("department", "brand").mode().min()
    by_line = products.join(lines, on="line", how="semi").group_by("line")
    return by_line.agg(pl.col(keys).first(), most_common, pl.len().alias("line_skus")).with_columns(
        bucket("line_skus", pl.col("line_skus")),
        pl.format("{} | {}", "type_name", "manufacturer").alias("line_name"),
    )


def household_profiles(demographics: pl.DataFrame, households: pl.DataFrame) -> pl.DataFrame:
    """Returns a row per household of ``households`` with the demographics that it gave.

    "Unknown" stands for a missing answer, "NoProfile" for a household without any; only 801 of 2,469 gave some.
    """
    answers = pl.col(PROFILE).fill_null("Unknown")
    profiles = demographics.select(pl.col("household_id").cast(pl.Int32).alias("household"), answers)
    joined = households.join(profiles, on="household", how="left")
    return joined.with_columns(pl.col(PROFILE).fill_null("NoProfile"))


def labels(rows: pl.DataFrame, visits: pl.DataFrame, purchases: pl.DataFrame) -> pl.DataFrame:
    """Returns the labels: what was bought in the visit.

    ``buy_category``, ``buy_type``, ``buy_line``: 1 if the visit has an item of the line's category, of its type, of the
    line; ``buy_multi``: 1 if it has two or more units of the line.
    """
    bought = purchases.join(visits, on=VISIT)
    units = bought.group_by("visit", "line").agg(pl.col("quantity").sum())
    sources = {
        "buy_category": ("category", bought),
        "buy_type": ("type", bought),
        "buy_line": ("line", bought),
        "buy_multi": ("line", units.filter(pl.col("quantity") >= 2)),
    }
    columns = []
    for label, (key, source) in sources.items():
        pairs = pack(["visit", key])
        happened = pairs.is_in(source.select(pairs).to_series().implode())
        columns.append(happened.cast(pl.UInt8).alias(label))
    return rows.select(columns)


def earlier_weeks(
    rows: pl.DataFrame, log: pl.DataFrame, by: Sequence[str], sums: Sequence[str] = (), window: int | None = None
) -> pl.DataFrame:
    """Sums up, for each row, the events of ``log`` with the same keys in earlier weeks.

    Args:
        rows, log: frames with the columns ``by`` and ``week``.
        by: names of the key columns.
        sums: columns of ``log`` to add up.
        window: number of weeks to look back; all by default.

    Returns:
        ``weeks``: number of different weeks with an event; ``recency``: number of weeks since the last of them, 0 if
        there is none; and the sum of each of ``sums``.
    """
    key = pack([*by, "week"]).alias("key")
    events = log.select(key, *sums).sort("key")
    new_week = (pl.col("key") != pl.col("key").shift(1, fill_value=-1)).cast(pl.Int64).alias("weeks")
    keys, now = events["key"].to_numpy(), rows.select(key).to_series().to_numpy()
    # the week is the last part of a key, so that the earlier weeks of a row are an interval of `keys`
    week = rows["week"].to_numpy()
    start = np.searchsorted(keys, now - (week if window is None else np.minimum(week, window)))
    end = np.searchsorted(keys, now)
    columns = {"recency": np.where(end > start, now - keys[end - 1], 0)}
    for column in events.select(new_week, *sums):
        running = np.concatenate([[0], column.cum_sum().to_numpy()])
        columns[column.name] = running[end] - running[start]
    return pl.DataFrame(columns)


def household_history(rows: pl.DataFrame, purchases: pl.DataFrame) -> pl.DataFrame:
    """Returns how often and how recently the household bought.

    ``hh_active_weeks``: bucket of the number of earlier weeks with a purchase; ``hh_recency``: bucket of the weeks
    since the last of them, 0 if there is none. ``hh_<key>_weeks`` and ``hh_<key>_recency`` count only purchases in the
    row's store, or in the category (``cat``), type, line or manufacturer (``manu``) of its line.
    """
    columns: list[pl.Series] = []
    for keys, weeks, recency in HISTORIES:
        history = earlier_weeks(rows, purchases, ["household", *keys])
        columns.append(history.select(bucket(weeks, pl.col("weeks"))).to_series())
        if recency is not None:
            columns.append(history.select(bucket(recency, pl.col("recency"))).to_series())
    return pl.DataFrame(columns)


def household_spending(rows: pl.DataFrame, purchases: pl.DataFrame) -> pl.DataFrame:
    """Returns how the household shopped in all earlier weeks.

    ``hh_spend``: bucket of dollars per week; ``hh_deal_share``, ``hh_private_share``: buckets of the shares of items
    bought at a discount and of private brands, 0 if nothing was bought.
    """
    history = earlier_weeks(rows, purchases, ["household"], ["cents", "discounted", "private", "items"])
    items = pl.when(pl.col("items") > 0).then("items")
    return history.with_columns(rows["week"]).select(
        bucket("hh_spend", pl.col("cents") / (100 * (pl.col("week") - 1))),
        bucket("hh_deal_share", pl.col("discounted") / items),
        bucket("hh_private_share", pl.col("private") / items),
    )


def line_sales(rows: pl.DataFrame, purchases: pl.DataFrame) -> pl.DataFrame:
    """Returns how the line sold to all households.

    ``line_pop4``: bucket of the number of buyers in the last four weeks, a household counting once a week;
    ``line_price``: bucket of the mean dollars per unit in all earlier weeks, 0 if no unit was sold.
    """
    buyers = purchases.unique(["household", "line", "week"]).select("line", "week", pl.lit(1).alias("buyers"))
    recent = earlier_weeks(rows, buyers, ["line"], ["buyers"], window=4)
    sold = earlier_weeks(rows, purchases, ["line"], ["cents", "quantity"])
    units = pl.when(pl.col("quantity") > 0).then("quantity")
    price = sold.select(bucket("line_price", pl.col("cents") / (100 * units)))
    return recent.select(bucket("line_pop4", pl.col("buyers"))).hstack(price)
