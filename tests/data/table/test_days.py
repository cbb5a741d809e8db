"""One day of a declared table is encoded as the whole table is, and takes up new ids without changing any."""

from dataclasses import replace
from datetime import date, timedelta

import polars as pl
import pyarrow as pa
import pytest

from tests.jobs.daily import shop
from torchrec_mtl.data.table import ByTime, Delay, Hashed, TableEncoder, Vocabulary, prepare_table
from torchrec_mtl.data.table.days import check_days, count_day, fit_day, write_day
from torchrec_mtl.data.table.fitting import Fitting
from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.declarations import load_table

DAYS = [shop.FIRST + timedelta(days=number) for number in range(4)]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return load_table(str(shop.write_days(tmp_path_factory.mktemp("shop"), 4)))


def test_a_day_has_the_rows_that_the_whole_table_has(table, tmp_path):
    """Histories too, which list rows of the days before: the encoders of the first day encode both."""
    table = replace(table, split=ByTime(str(DAYS[1]), str(DAYS[2])))  # fitted on the first day
    prepared = prepare_table(table, tmp_path / "prepared")
    whole = pl.concat([pl.read_parquet(prepared / f"{split}.parquet") for split in ("train", "valid", "test")])
    encoder = fit_day(table, DAYS[0])
    assert encoder.fitted.keys() == TableEncoder.load(prepared).fitted.keys()
    for day in DAYS:
        counts = count_day(encoder, day)
        schema = write_day(encoder, day, counts.num_read, tmp_path / str(day))
        rows = pl.read_parquet(tmp_path / str(day) / "train.parquet")
        assert schema.num_rows == {"train": counts.num_rows} == {"train": 400}
        assert rows.equals(whole.filter(pl.col("ts").dt.date() == day))
    assert rows["recent"].list.len().max() == 3


def test_ids_of_later_days_are_appended(table):
    encoder, ids = fit_day(table, DAYS[0]), {}
    rows = [encoder.num_embeddings(name) for name in ("user", "item")]
    for day in DAYS[1:]:
        for name in ("user", "item"):
            values = encoder.fitted[name]["values"].values
            ids[name] = dict(zip(values.to_pylist(), encoder.ids(name, values).tolist(), strict=True))
        encoder, left_out = encoder.extended(count_day(encoder, day).values)
        assert left_out == {"user": 0, "item": 0}
        for name, known in ids.items():
            assert encoder.ids(name, pa.array(list(known))).tolist() == list(known.values())
    items = {item for number in range(4) for item in shop.rows_of(number)["item"]}
    assert sorted(encoder.ids("item", pa.array(sorted(items))).tolist()) == list(range(2, 2 + len(items)))
    assert [encoder.num_embeddings(name) for name in ("user", "item")] == rows


@pytest.mark.parametrize("kind", ["text", "integers"])
@pytest.mark.parametrize(("spare", "min_count"), [(0, 1), (1, 1), (2, 2), (50, 3)])
def test_a_full_table_leaves_the_rarest_values_out(kind, spare, min_count):
    value = str if kind == "text" else int
    field = Vocabulary("item", spare_rows=spare, min_count=min_count)
    fitted = field.fit(pl.DataFrame({"value": [value(7)], "count": [9]}))
    counts = pl.DataFrame({"value": [value(n) for n in (5, 7, 3, 1)], "count": [4, 3, 3, 1]})
    new = [each for each, count in zip((5, 3, 1), (4, 3, 1), strict=True) if count >= min_count]
    fitted, left_out = field.extended(fitted, counts)
    assert left_out == max(0, len(new) - spare)
    expected = [new.index(n) + 3 if n in new[:spare] else 1 for n in (5, 3, 1)]
    assert field.encode(pa.array([value(n) for n in (7, 5, 3, 1)]), fitted).tolist() == [2, *expected]
    assert field.num_embeddings(fitted) == 3 + spare


def test_a_vocabulary_of_a_day_without_values_takes_up_those_of_the_next():
    field = Vocabulary("item", spare_rows=2)
    fitted = field.fit(pl.DataFrame(schema={"value": pl.Null, "count": pl.Int64}))
    fitted, _ = field.extended(fitted, pl.DataFrame({"value": [8], "count": [1]}))
    assert field.encode(pa.array([8, None]), fitted).tolist() == [2, 0]


def test_an_encoder_that_has_grown_is_loaded_as_it_was(table, tmp_path):
    encoder, _ = fit_day(table, DAYS[0]).extended(count_day(fit_day(table, DAYS[0]), DAYS[1]).values)
    encoder.save(tmp_path)
    loaded = TableEncoder.load(tmp_path)
    items = pa.array(shop.rows_of(2)["item"].to_list())
    assert loaded.ids("item", items).tolist() == encoder.ids("item", items).tolist()
    assert loaded.num_embeddings("item") == encoder.num_embeddings("item")
    counts = count_day(loaded, DAYS[2]).values
    assert (
        loaded.extended(counts)[0].ids("item", items).tolist()
        == encoder.extended(counts)[0].ids("item", items).tolist()
    )


def test_hive_partitions_are_days(table, tmp_path):
    for number, day in enumerate(DAYS):
        folder = tmp_path / "log" / f"dt={day}"
        folder.mkdir(parents=True)
        if number < 3:
            shop.rows_of(number).drop("ts").write_parquet(folder / "part-0.parquet")
        else:
            (folder / "part-0.parquet").write_bytes(b"not read")
    hive = replace(table, source=str(tmp_path / "log"), time="dt", fields=[Vocabulary("item"), Hashed("user", 9)])
    encoder = fit_day(hive, DAYS[0])
    items = set(shop.rows_of(0)["item"])
    assert set(encoder.fitted["item"]["values"].values.to_pylist()) == items
    assert count_day(encoder, DAYS[1]).num_rows == 400
    with pytest.raises(InputError, match=f"dt={DAYS[3]}/part-0.parquet: cannot be read"):
        count_day(encoder, DAYS[3])


def test_a_day_that_is_missing_or_empty_is_named(table):
    with pytest.raises(InputError, match=r"log: day 2026-11-09 must have rows \(UTC, by column 'ts'\), but has none"):
        fit_day(table, date(2026, 11, 9))
    with pytest.raises(InputError, match="day 2026-10-31 must have rows"):
        count_day(fit_day(table, DAYS[0]), date(2026, 10, 31))


def test_rows_on_both_sides_of_midnight_are_of_their_days(table, tmp_path):
    times = ["2026-11-01T00:00:00", "2026-11-01T23:59:59.999999", "2026-11-02T00:00:00", "2026-11-01T23:30:00-01:00"]
    rows = shop.rows_of(0)[:4].with_columns(ts=pl.Series([f"{t}Z" if "-01:00" not in t else t for t in times]))
    rows.write_csv(tmp_path / "log.csv")
    there = replace(table, source=str(tmp_path / "log.csv"))
    encoder = fit_day(there, DAYS[0])
    assert [count_day(encoder, day).num_rows for day in DAYS[:2]] == [2, 2]


def test_a_table_whose_rows_have_no_day_is_refused(table):
    fields = [Vocabulary("item")]
    by_split = dict.fromkeys(("train", "valid", "test"), "log.csv")
    with pytest.raises(InputError, match="`time` of table 'shop' must name the column"):
        check_days(replace(table, fields=fields, time=None, group=None, source=by_split, split=None))
    with pytest.raises(InputError, match="`source` of table 'shop' must not name splits"):
        check_days(replace(table, source=by_split, split=None))


def test_a_table_whose_labels_come_late_is_refused(table):
    late = Delay("buy", time="bought_at", window="1d")
    with pytest.raises(InputError, match="`delays` of table 'shop' must be empty"):
        check_days(replace(table, delays=[late]))


def test_a_bad_row_is_named(table, tmp_path):
    rows = shop.rows_of(0).with_columns(click=pl.Series([7] + [0] * 399), buy=pl.lit(0))
    rows.write_csv(tmp_path / "log.csv")
    with pytest.raises(
        InputError, match=r"log.csv: column 'click', row 0 \(counted from 0\): label '7' must be 0 or 1"
    ):
        fit_day(replace(table, source=str(tmp_path / "log.csv")), DAYS[0])


def test_fitting_a_day_is_fitting_its_rows(table):
    encoder, fitting = fit_day(table, DAYS[0]), Fitting(table)
    assert encoder.table is fitting.table
    counted = shop.rows_of(0)["item"].value_counts(sort=True)
    first = counted.filter(pl.col("count") == counted["count"].max())["item"].min()
    assert encoder.ids("item", pa.array([first])).tolist() == [2]
