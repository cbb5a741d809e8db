"""What is guessed of a table, and that the written declaration runs as it is."""

import datetime as dt
import json
import string
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from torchrec_mtl.__main__ import main
from torchrec_mtl.data.table import Bins, ByHash, ByTime, Dense, Hashed, History, TimeOf, Vocabulary
from torchrec_mtl.data.table.infer import infer_table
from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.declarations import load_table

BEGIN = dt.datetime(2026, 11, 1)


def shop(num_rows=400, seed=0):
    rng = np.random.default_rng(seed)
    happened = np.cumprod(rng.random((num_rows, 3)) < 0.6, axis=1)
    times = [BEGIN + dt.timedelta(minutes=int(m)) for m in np.sort(rng.integers(0, 20 * 1440, num_rows))]
    return {
        "ts": times,
        "user_id": [f"u{n}" for n in rng.integers(0, 40, num_rows)],
        "item": [f"i{n}" for n in rng.integers(0, 60, num_rows)],
        "age": [None if n < 5 else int(n) for n in rng.integers(0, 90, num_rows)],
        "price": rng.lognormal(size=num_rows).tolist(),
        "ctr": rng.random(num_rows).tolist(),
        "signup": [
            each - dt.timedelta(days=int(d)) for each, d in zip(times, rng.integers(0, 99, num_rows), strict=True)
        ],
        "tags": ["|".join(f"t{n}" for n in rng.integers(0, 9, k)) for k in rng.integers(0, 4, num_rows)],
        "row_id": [f"r{n}" for n in range(num_rows)],
        "country": ["nl"] * num_rows,
        "purchased": happened[:, 2].tolist(),
        "click": happened[:, 0].tolist(),
        "add_to_cart": happened[:, 1].tolist(),
    }


def inferred(folder, rows, name="shop.csv", **options):
    pl.DataFrame(rows).write_csv(folder / name, datetime_format="%Y-%m-%dT%H:%M:%S")
    text = infer_table(str(folder / name), **options)
    (folder / "declared.py").write_text(text)
    return load_table(str(folder / "declared.py")), text


def test_a_shop_of_text_alone(tmp_path):
    table, text = inferred(tmp_path, shop())
    assert str(table.tasks) == "click -> add_to_cart -> purchased"
    assert (table.time, table.group, table.split) == ("ts", "user_id", ByTime("2026-11-17", "2026-11-19"))
    kinds = {name: type(each) for name, each in table.by_name.items()}
    assert kinds == {
        "user_id": Vocabulary,
        "item": Vocabulary,
        "age": Vocabulary,
        "price": Bins,
        "ctr": Dense,
        "signup": Bins,
        "tags": Vocabulary,
        "hour": TimeOf,
        "recent_item": History,
    }
    assert table.by_name["signup"].column.column == "signup"
    assert (table.by_name["tags"].separator, table.by_name["recent_item"].of) == ("|", "item")
    assert "# left out: row_id (another value in every row), country (one value in all rows)" in text
    assert max(map(len, text.splitlines())) <= 100


def test_twelve_fields_are_fifteen_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows, rng = shop(), np.random.default_rng(1)
    rows |= {name: rng.integers(0, 9, 400).tolist() for name in ("shop", "cat", "city", "device")}
    rows["dwell"] = rng.lognormal(size=400).tolist()
    out = ("signup", "tags", "row_id", "country", "purchased")
    table, text = inferred(Path(), {name: rows[name] for name in rows if name not in out}, name="log.csv")
    assert len(table.fields) == 12
    assert len(text.splitlines()) <= 15
    assert max(map(len, text.splitlines())) <= 100


def test_a_funnel_with_branches(tmp_path):
    rows = shop()
    rows["like"] = [click * (number % 2) for number, click in enumerate(rows["click"])]
    table, _ = inferred(tmp_path, rows)
    assert {task.name: task.after for task in table.tasks.tasks} == {
        "click": None,
        "like": "click",
        "add_to_cart": "click",
        "purchased": "add_to_cart",
    }


def test_a_label_that_happens_without_the_other_needs_it_not(tmp_path):
    rows = shop()
    rows["click"][rows["add_to_cart"].index(1)] = 0
    table, _ = inferred(tmp_path, rows)
    assert {task.name: task.after for task in table.tasks.tasks}["add_to_cart"] is None


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({}, {"tasks": ["click", "add_to_cart"]}),
        ({"purchased": [None] * 5 + shop()["purchased"][5:]}, {}),
        ({"target": shop()["purchased"], "purchased": None}, {}),
    ],
)
def test_no_label_becomes_a_field(tmp_path, change, options):
    rows = {name: values for name, values in {**shop(), **change}.items() if values is not None}
    table, text = inferred(tmp_path, rows, **options)
    assert table.tasks.names == ("click", "add_to_cart")
    assert not {"purchased", "target"} & table.by_name.keys()
    assert "(0 and 1, as an event: a task if no row lacks it" in text.replace("\n#", "")


def test_a_field_named_after_an_event_is_asked_about(tmp_path):
    _, text = inferred(tmp_path, {**shop(), "order_value": shop()["price"]})
    (line,) = [line for line in text.splitlines() if "order_value" in line]
    assert line.endswith("; is it known before the row?")


def test_what_the_first_rows_do_not_say_of_labels_and_times(tmp_path):
    rows = shop()
    table, _ = inferred(tmp_path, rows, num_rows=20)
    assert (str(table.tasks), table.split) == ("click -> add_to_cart -> purchased", ByTime("2026-11-17", "2026-11-19"))


def test_integers_by_name_and_times_in_milliseconds(tmp_path):
    rows = shop()
    rows["ts"] = [round(each.timestamp() * 1000) for each in rows["ts"]]
    rows |= {"sku": list(range(1000, 1400)), "visits": list(range(400)), "zip": ["007"] * 200 + ["107"] * 200}
    table, text = inferred(tmp_path, {name: rows[name] for name in rows if name not in ("signup", "item")})
    assert table.time_unit == "ms"
    assert (type(table.by_name["zip"]), type(table.by_name["visits"])) == (Vocabulary, Bins)
    assert "sku (another value in every row)" in text.replace("\n#", "")


def test_rare_values_get_no_id_of_their_own(tmp_path):
    rows = {"q": [f"q{n % 1500}" for n in range(3000)], "click": [0, 1] * 1500}
    assert inferred(tmp_path, rows)[0].fields == (Vocabulary("q", min_count=2),)


def test_without_time_rows_are_split_by_a_hash(tmp_path):
    table, _ = inferred(tmp_path, {name: shop()[name] for name in ("user_id", "item", "click")})
    assert (table.time, table.split, table.histories) == (None, ByHash("user_id"), ())


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"tasks": ["clik"]}, "label column 'clik' must be one of .*; the nearest is 'click'"),
        ({}, {"tasks": ["age"]}, "label column 'age' must hold 0 and 1 in every row"),
        ({"click": None, "add_to_cart": None, "purchased": None}, {}, "has the name of an event .*--tasks"),
        ({"click": [0] * 400, "add_to_cart": None, "purchased": None}, {}, r"\['click'\] must have 0 in some rows"),
    ],
)
def test_no_label(tmp_path, change, options, message):
    rows = {name: values for name, values in {**shop(), **change}.items() if values is not None}
    with pytest.raises(InputError, match=message):
        inferred(tmp_path, rows, **options)


names = st.text(string.ascii_letters + string.digits + " _-.\"'#{}é日\t", min_size=1, max_size=12)
values = st.one_of(
    st.sampled_from([["a", "b", "c"], ["x|y", "y", ""], ["1", "2", "30"], ["007", "12", ""], ["1.5", "-2", "1e9"]]),
    st.sampled_from([["2026-11-01", "2026-12-02"], ["2026-11-01T10:00:00", "2025-01-01"], ["nan", "inf"], [" ", "b"]]),
    st.lists(st.text(max_size=5), min_size=1, max_size=4),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4),
    st.lists(st.integers(0, 1), min_size=1, max_size=4),
    st.lists(st.floats(), min_size=1, max_size=4),
    st.lists(st.booleans(), min_size=1, max_size=4),
    st.lists(st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2100, 1, 1)), min_size=1, max_size=4),
    st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=3),
    st.lists(st.lists(st.floats(0, 1), max_size=3), min_size=1, max_size=3),
    st.lists(st.lists(st.text(max_size=3), max_size=3), min_size=1, max_size=3),
    st.just([{"inner": 1}]),
    st.just([None]),
)
known_names = st.sampled_from(
    ["ts", "time", "user", "item", "user_id", "created_at", "like", "cart", "price_missing", "price", "hour", "id"]
)
columns = st.dictionaries(names | known_names, st.tuples(values, st.booleans(), st.integers(1, 7)), max_size=7)


@settings(max_examples=30)
@example({"0": ([0.0, 1.797679419552144e308], False, 1)}, "csv", 60)
@given(columns, st.sampled_from(["csv", "parquet", "arrow", "jsonl"]), st.integers(60, 200))
def test_what_is_written_runs_as_it_is(columns, suffix, num_rows):
    rows = {"key": [f"k{n % 50}" for n in range(num_rows)], "click": [n % 2 for n in range(num_rows)]}
    for name, (cycle, with_missing, step) in columns.items():
        cycle = [*cycle, *[None] * with_missing]
        rows.setdefault(name, [cycle[n // step % len(cycle)] for n in range(num_rows)])
    with TemporaryDirectory() as folder:
        file, declaration = Path(folder, f"rows.{suffix}"), str(Path(folder, "declared.py"))
        write(rows, file)
        Path(declaration).write_text(infer_table(str(file)), encoding="utf-8")
        table = load_table(declaration)
        assert {type(each) for each in table.fields} <= {Vocabulary, Hashed, Bins, Dense, TimeOf, History}
        assert main(["prepare", "table", "--declaration", declaration, "--show"]) == 0
        assert main(["prepare", "table", "--declaration", declaration, "--output", f"{folder}/out"]) == 0


def write(rows, file):
    table = pa.table({name: pa.array(values) for name, values in rows.items()})
    if file.suffix == ".parquet":
        pq.write_table(table, file)
    elif file.suffix == ".arrow":
        pa.feather.write_feather(table, file, compression="uncompressed")
    elif file.suffix == ".jsonl":
        lines = [
            json.dumps(row, default=str).replace("NaN", "null").replace("Infinity", "9") for row in table.to_pylist()
        ]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        flat = [
            name
            for name, column in zip(table.column_names, table.columns, strict=True)
            if not pa.types.is_nested(column.type)
        ]
        pl.DataFrame(table.select(flat)).write_csv(file)
