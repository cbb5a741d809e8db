"""Preparing a table: what is wrong is refused in one sentence, and a folder is whole or absent."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.data.table import shops
from tests.data.table.shops import Shop
from torchrec_mtl.data import read_split
from torchrec_mtl.data.schema import SPLITS, Schema
from torchrec_mtl.data.table import (
    ByColumn,
    ByHash,
    ByTime,
    Dense,
    History,
    Integers,
    Table,
    TableEncoder,
    Vocabulary,
    prepare_table,
)
from torchrec_mtl.errors import LARGEST, InputError
from torchrec_mtl.tasks import Task, TaskForest

Rows = list[dict[str, Any]]


@pytest.fixture
def rows() -> Rows:
    return shops.draw(np.random.default_rng(5), 40, integer_keys=False, missing=0.1)


def test_a_second_call_uses_what_the_first_prepared(tmp_path: Path, rows: Rows) -> None:
    table = shops.table(shops.write(tmp_path / "raw", rows, "parquet").path)
    stages: list[tuple[str, int, float]] = []
    folder = prepare_table(table, tmp_path / "out", progress=lambda *stage: stages.append(stage))
    assert [stages[-1][0], stages[-1][2]] == ["encode", 1.0]
    assert list(dict.fromkeys(stage for stage, _, _ in stages)) == ["fit", "histories", "encode"]
    shutil.rmtree(tmp_path / "raw")
    with pytest.raises(InputError, match="no such file or folder"):
        prepare_table(table, folder)
    report = json.loads((folder / "report.json").read_text())
    assert (
        report["num_rows"]
        == Schema.load(folder).num_rows
        == {split: len(read_split(folder, split)) for split in SPLITS}
    )


@pytest.mark.parametrize(
    ("group", "split", "together"),
    [
        ("user", ByHash("note"), "user"),
        (None, ByHash("user"), "user"),
        (None, ByTime("1971-01-01", "1972-01-01"), "note"),
    ],
)
def test_a_sample_is_of_whole_groups(tmp_path: Path, group: str | None, split: Any, together: str) -> None:
    days = [f"{year}-01-{1 + number % 28:02}" for number in range(1000) for year in (1970, 1971, 1972)]
    raw = {"ts": days, "user": [f"u{n // 3}" for n in range(3000)], "note": [f"n{n}" for n in range(3000)]}
    pl.DataFrame({**raw, "click": [0, 1] * 1500}).write_csv(tmp_path / "raw.csv")
    further = {"split": split, "time": "ts", "group": group, "keep": ["note"]}
    table = Table("shop", str(tmp_path / "raw.csv"), TaskForest(Task("click")), [Vocabulary("user")], **further)
    notes = []
    for sample in (0.2, 0.5, 1.0):
        folder = prepare_table(table, tmp_path / str(sample), sample=sample)
        notes.append({note for each in SPLITS for note in pl.read_parquet(folder / f"{each}.parquet")["note"]})
        assert len(notes[-1]) == pytest.approx(3000 * sample, abs=150)
    assert notes[0] < notes[1] < notes[2] == set(raw["note"])
    of = dict(zip(raw["note"], raw[together], strict=True))
    for of_sample in notes[:2]:
        assert not {of[note] for note in of_sample} & {of[note] for note in notes[2] - of_sample}
    encoder = TableEncoder.load(tmp_path / "0.2")
    assert encoder.num_embeddings("user") < 300
    with pytest.raises(InputError, match=r"`sample` \(=0\) must be above 0 and at most 1"):
        prepare_table(table, tmp_path / "none", sample=0)


def test_another_declaration_needs_another_folder(tmp_path: Path, rows: Rows) -> None:
    table = shops.table(shops.write(tmp_path / "raw", rows, "parquet").path)
    prepare_table(table, tmp_path / "out")
    other = shops.replace_fields(table, [*table.fields, Vocabulary("more", column="city")])
    with pytest.raises(InputError, match=r"`output` .*must be a new folder: it was prepared with"):
        prepare_table(other, tmp_path / "out")


def test_splits_may_be_given_by_files_a_column_or_a_hash(tmp_path: Path, rows: Rows) -> None:
    for number, split in enumerate(SPLITS):
        shops.write(tmp_path / split, rows[number * 10 : number * 10 + 10], "parquet")
    tasks, fields = TaskForest(Task("click"), Task("buy", after="click")), [Vocabulary("item"), Dense("age")]
    given = {split: str(tmp_path / split) for split in SPLITS}
    folder = prepare_table(Table("shop", given, tasks, fields, keep=["note"]), tmp_path / "given")
    for number, split in enumerate(SPLITS):
        notes = pl.read_parquet(folder / f"{split}.parquet")["note"].to_list()
        assert notes == [row["note"] for row in rows[number * 10 : number * 10 + 10]]
    named = [{**row, "half": SPLITS[number // 10]} for number, row in enumerate(rows[:30])]
    shops.write(tmp_path / "named", named[::-1], "csv")
    by_column = Table("shop", str(tmp_path / "named"), tasks, fields, split=ByColumn("half"), keep=["note"])
    same = prepare_table(by_column, tmp_path / "column")
    for split in SPLITS:
        one, other = (pl.read_parquet(each / f"{split}.parquet") for each in (folder, same))
        assert one.select("item", "note").equals(other.select("item", "note").reverse())
    assert TableEncoder.load(same).table == by_column
    by_hash = Table("shop", list(given.values()), tasks, fields, split=ByHash("note", 0.3, 0.3), keep=["note"])
    folder = prepare_table(by_hash, tmp_path / "hash")
    notes = [pl.read_parquet(folder / f"{split}.parquet")["note"].to_list() for split in SPLITS]
    assert sorted(note for each in notes for note in each) == sorted(row["note"] for row in rows[:30])
    reversed_source = Table("shop", list(given.values())[::-1], tasks, fields, split=by_hash.split, keep=["note"])
    again = prepare_table(reversed_source, tmp_path / "again")
    assert [set(pl.read_parquet(again / f"{split}.parquet")["note"]) for split in SPLITS] == list(map(set, notes))


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("dev", r"column 'half', row 1 .*split 'dev' must be one of \['train', 'valid', 'test'\]"),
        (None, "column 'half', row 1 .*key of a split must not be missing"),
        (1, "split 1 must be one of"),
    ],
)
def test_a_split_that_there_is_not_is_refused(tmp_path: Path, rows: Rows, value: Any, sentence: str) -> None:
    names = [*SPLITS, "train"] if isinstance(value, str | None) else [1, 1, 1, 1]
    rows = [{**row, "half": name} for row, name in zip(rows, names, strict=False)]
    rows[1]["half"] = value
    pl.DataFrame(rows).select("item", "click", "half").write_parquet(tmp_path / "raw.parquet")
    table = Table(
        "shop", str(tmp_path / "raw.parquet"), TaskForest(Task("click")), [Vocabulary("item")], split=ByColumn("half")
    )
    with pytest.raises(InputError, match=sentence):
        prepare_table(table, tmp_path / "out")


def test_a_file_in_two_splits_is_refused(tmp_path: Path, rows: Rows) -> None:
    shop = shops.write(tmp_path / "raw", rows, "parquet", num_parts=3)
    given = {
        "train": f"{shop.path}/part-0000[01]*",
        "valid": f"{shop.path}/part-00001*",
        "test": f"{shop.path}/part-00002*",
    }
    with pytest.raises(InputError, match=r"part-00001.parquet: must be in one split, or splits overlap"):
        prepare_table(Table("shop", given, TaskForest(Task("click")), [Vocabulary("item")]), tmp_path / "out")


def changed(row: int, **values: Any) -> Callable[[Rows], Rows]:
    """Rows of which one has other values."""
    return lambda rows: [{**each, **(values if number == row else {})} for number, each in enumerate(rows)]


# ruff: noqa: E501
WRONG_ROWS: dict[str, tuple[str, Callable[[Rows], Rows], str]] = {
    "text for a number": ("jsonl", changed(7, price="cheap"), "column 'price', row 7 .*'cheap' must be a number"),
    "text for a number in CSV": ("csv", lambda rows: [{**row, "price": "cheap"} for row in rows], "'price', row 0 .*'cheap'"),
    "no time": ("jsonl", changed(7, ts="soon"), "column 'ts', row 7 .*'soon' must be a time such as"),
    "a time missing": ("csv", changed(7, ts=None), "column 'ts', row 7 .*time must not be missing"),
    "a zone": ("jsonl", changed(7, ts="2026-11-01T00:00:00Z"), "column 'ts', row 7 .*'2026-11-01T00:00:00Z' must be a time"),
    "a label of 2": ("parquet", changed(7, click=2), "column 'click', row 7 .*label 2.* must be 0 or 1"),
    "no label": ("parquet", changed(7, buy=None), "column 'buy', row 7 .*label must not be missing"),
    "a purchase without a click": ("csv", changed(7, click=0, buy=1), r"'buy', row 7 .*'buy' \(=1\) must not happen without 'click' \(=0\)"),
    "an id too large": ("arrow", changed(7, weekday=7), "column 'weekday', row 7 .*id 7 must be at least 0 and below"),
    "no group": ("parquet", changed(7, user=None), "column 'user', row 7 .*group must not be missing"),
    "a weight too few": ("parquet", changed(7, tags=["a", "b"], tag_weights=[1.0]), "'tag_weights', row 7 .*as 'tags' has ids, not 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_ROWS)
def test_a_wrong_row_is_refused_or_put_aside(tmp_path: Path, rows: Rows, case: str) -> None:
    format, change, message = WRONG_ROWS[case]
    rows = [shops.as_text(row) for row in rows] if format == "csv" else rows
    shop = shops.write(tmp_path / "raw", change(rows), format)
    table = shops.table(shop.path, format)
    with pytest.raises(InputError, match=rf"raw/part-00000.{format}: .*{message}") as error:
        prepare_table(table, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    if case == "text for a number in CSV":
        return
    folder = prepare_table(table, tmp_path / "out", bad_rows="quarantine", bad_rows_limit=1)
    (aside,) = (folder / "bad_rows.tsv").read_text().splitlines()
    name, _, reason, content = aside.split("\t")
    assert name == f"{shop.path}/part-00000.{format}"
    assert "row 7 (counted from 0)" in reason
    assert json.loads(content)["note"] == "row 7"
    kept = [note for split in SPLITS for note in pl.read_parquet(folder / f"{split}.parquet")["note"].to_list()]
    assert sorted(kept) == sorted(row["note"] for number, row in enumerate(rows) if number != 7)
    other = shops.write(tmp_path / "without", shop.rows[:7] + shop.rows[8:], format)
    alone = prepare_table(shops.table(other.path, format), tmp_path / "alone")
    for split in SPLITS:  # as if the row had never been there
        assert pl.read_parquet(folder / f"{split}.parquet").equals(pl.read_parquet(alone / f"{split}.parquet"))


def test_more_bad_rows_than_the_limit_are_refused(tmp_path: Path, rows: Rows) -> None:
    rows = [{**row, "weekday": 9} if number in (3, 4) else row for number, row in enumerate(rows)]
    table = shops.table(shops.write(tmp_path / "raw", rows, "parquet").path)
    with pytest.raises(InputError, match=r"row 4 .*more bad rows than `bad_rows_limit` \(=1\)"):
        prepare_table(table, tmp_path / "out", bad_rows="quarantine", bad_rows_limit=1)


def test_a_part_of_bad_rows_alone_is_put_aside(tmp_path: Path, rows: Rows) -> None:
    shop = shops.write(tmp_path / "raw", rows, "parquet")
    shops.write(tmp_path / "bad", [{**row, "weekday": 9, "price": float("nan")} for row in rows[:3]], "parquet")
    table = shops.table(shop.path)
    for number, source in enumerate(([str(shop.path), f"{tmp_path}/bad"], [f"{tmp_path}/bad", str(shop.path)])):
        both = Table("shop", source, table.tasks, table.fields, split=table.split, time="ts", group="user")
        folder = prepare_table(both, tmp_path / f"out{number}", bad_rows="quarantine")
        assert sum(Schema.load(folder).num_rows.values()) == len(rows)
        assert len((folder / "bad_rows.tsv").read_text().splitlines()) == 3


def parts_of(first: Rows, second: Rows) -> list[tuple[Rows, str]]:
    return [(first, "parquet"), (second, "parquet")]


DIFFERENT: dict[str, tuple[Callable[[Rows], list[tuple[Rows, str]]], str]] = {
    "a column less": (
        lambda rows: parts_of(rows, [{name: value for name, value in row.items() if name != "price"} for row in rows]),
        "part-1.parquet: column 'price' is missing; the columns are",
    ),
    "integers, then strings": (
        lambda rows: parts_of(shops.draw(np.random.default_rng(0), 9, True, 0), rows),
        "part-1.parquet: field 'user' must have values of type integer, as the rows before, not string",
    ),
    "lists, then values": (
        lambda rows: parts_of(rows, [{**row, "item": [row["item"]]} for row in rows]),
        "part-1.parquet: field 'item' must have one value a row, as the rows before, not lists",
    ),
    "no zone, then a zone": (
        lambda rows: [(rows, "parquet"), ([{**row, "ts": f"{row['ts'].isoformat()}Z"} for row in rows], "jsonl")],
        "part-1.jsonl: column 'ts' must have times without a time zone, as the rows before, not with a time zone",
    ),
    "kept text, then kept numbers": (
        lambda rows: parts_of(rows, [{**row, "note": 3} for row in rows]),
        "part-1.parquet: column 'note' must hold String, as the rows before, not Int64",
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_files_of_different_columns_are_refused(tmp_path: Path, rows: Rows, case: str) -> None:
    make, message = DIFFERENT[case]
    (tmp_path / "raw").mkdir()
    for number, (of_part, format) in enumerate(make(rows)):
        write_any(tmp_path / "raw" / f"part-{number}.{format}", of_part, format)
    table = shops.table(tmp_path / "raw")
    table = Table(
        table.name, table.source, table.tasks, table.fields, split=table.split, time="ts", group="user", keep=["note"]
    )
    with pytest.raises(InputError, match=message):
        prepare_table(table, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def write_any(file: Path, rows: Rows, format: str) -> None:
    if format == "parquet":
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(file)
    else:
        shops.write_file(file, rows, format, None)


def test_a_group_of_integers_in_one_file_and_strings_in_another_is_refused(tmp_path: Path, rows: Rows) -> None:
    fields = [Vocabulary("item"), History("recent", "item")]
    (tmp_path / "raw").mkdir()
    for number, part in enumerate((rows, [{**row, "user": 5} for row in rows])):
        write_any(tmp_path / f"raw/part-{number}.parquet", part, "parquet")
    table = shops.replace_fields(shops.table(tmp_path / "raw"), fields)
    with pytest.raises(
        InputError, match=r"part-1.parquet: the group must have values of type string, as .*not integer"
    ):
        prepare_table(table, tmp_path / "out")


@pytest.mark.parametrize("split", SPLITS)
def test_an_empty_split_is_refused_before_rows_are_encoded(tmp_path: Path, rows: Rows, split: str) -> None:
    splits = Shop(rows, tmp_path, "").splits()
    kept = [row for name, of_split in zip(SPLITS, splits, strict=True) if name != split for row in of_split]
    table = shops.table(shops.write(tmp_path / "raw", kept, "parquet").path)
    stages: list[str] = []
    with pytest.raises(InputError, match=rf"split '{split}' of `source` .*must have at least one row"):
        prepare_table(table, tmp_path / "out", progress=lambda stage, *_: stages.append(stage))
    assert set(stages) == {"fit"}


def test_more_ids_than_a_table_can_have_are_refused(tmp_path: Path, rows: Rows) -> None:
    table = shops.table(shops.write(tmp_path / "raw", rows, "parquet").path)
    fields = [shops.Hashed("city", LARGEST)]
    with pytest.raises(InputError, match=rf"field 'city' must have at most {LARGEST} ids, not {LARGEST + 1}: set"):
        prepare_table(shops.replace_fields(table, fields), tmp_path / "out")


def test_fields_of_one_table_with_other_pooling_are_refused_before_rows_are_encoded(tmp_path: Path, rows: Rows) -> None:
    table = shops.table(shops.write(tmp_path / "raw", rows, "parquet").path)
    fields = [Vocabulary("tags", pooling="mean"), Vocabulary("liked", column="tags", shares="tags")]
    stages: list[str] = []
    with pytest.raises(InputError, match=r"`pooling` of the fields \['tags', 'liked'\] must be the same"):
        prepare_table(
            shops.replace_fields(table, fields), tmp_path / "out", progress=lambda name, *_: stages.append(name)
        )
    assert set(stages) == {"fit"}


def test_a_source_that_changes_between_the_passes_is_refused(tmp_path: Path, rows: Rows) -> None:
    shop = shops.write(tmp_path / "raw", rows, "parquet")
    (file,) = shop.path.glob("part*")

    def touch(stage: str, *_: object) -> None:
        if stage == "histories":
            os.utime(file, ns=(1, 1))

    with pytest.raises(InputError, match=r"part-00000.parquet: was changed while it was read"):
        prepare_table(shops.table(shop.path), tmp_path / "out", progress=touch)
    assert not (tmp_path / "out").exists()


def test_labels_that_a_weight_of_0_masks_may_be_missing(tmp_path: Path, rows: Rows) -> None:
    rows = [
        {**row, "w": float(number % 2), "buy": row["buy"] if number % 2 else None} for number, row in enumerate(rows)
    ]
    tasks = TaskForest(Task("click"), Task("buy", after="click", weight_column="w"))
    (tmp_path / "raw").mkdir()
    write_any(tmp_path / "raw/a.parquet", rows, "parquet")
    base = shops.table(tmp_path / "raw")
    table = Table("shop", base.source, tasks, base.fields, split=base.split, time="ts", group="user")
    folder = prepare_table(table, tmp_path / "out")
    for split, of_split in zip(SPLITS, Shop(rows, tmp_path, "").splits(), strict=True):
        labels = pl.read_parquet(folder / f"{split}.parquet")["buy"].fill_nan(-1)
        assert len(read_split(folder, split)) == len(labels)
        assert labels.to_list() == [-1 if row["buy"] is None else row["buy"] for row in of_split]
    rows[7]["buy"] = None
    write_any(tmp_path / "raw/a.parquet", rows, "parquet")
    with pytest.raises(InputError, match=r"column 'buy', row 7 .*label must not be missing, unless its weight is 0"):
        prepare_table(table, tmp_path / "other")


def test_keys_that_went_through_floats_are_refused_beyond_2_53(tmp_path: Path, rows: Rows) -> None:
    (tmp_path / "raw").mkdir()
    for number, row in enumerate(rows):
        row["item"] = None if number == 3 else float(number if number != 9 else 2**53 + 2)
    write_any(tmp_path / "raw/a.parquet", rows, "parquet")
    with pytest.raises(InputError, match=r"column 'item', row 9 .*9007199254740994.0 must be below 2\^53: as a float"):
        prepare_table(shops.table(tmp_path / "raw"), tmp_path / "out")


def test_integers_as_they_are_keep_their_range(tmp_path: Path, rows: Rows) -> None:
    table = shops.table(shops.write(tmp_path / "raw", rows, "parquet").path)
    with pytest.raises(InputError, match=r"column 'weekday', row \d+ .*id None must be at least 0"):
        prepare_table(shops.replace_fields(table, [Integers("weekday", 7)]), tmp_path / "out")


KILLED = """
import sys
from tests.data.table import shops
from torchrec_mtl.data.table import history, prepare_table
history.ROWS_IN_MEMORY = 500
print("began", flush=True)
prepare_table(shops.table(sys.argv[1]), sys.argv[2])
"""


@pytest.mark.verify
@pytest.mark.slow
def test_a_killed_preparation_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    rows = shops.draw(np.random.default_rng(0), 4000, integer_keys=False, missing=0.1)
    shop = shops.write(tmp_path / "raw", rows, "parquet", num_parts=3)
    whole = prepare_table(shops.table(shop.path), tmp_path / "whole")
    draw = random.Random(1)
    for attempt in range(6):
        command = [sys.executable, "-c", KILLED, str(shop.path), str(tmp_path / "out")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(draw.random() * 0.4 * (attempt + 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert_whole_or_absent(tmp_path / "out", whole)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    prepare_table(shops.table(shop.path), tmp_path / "out")
    assert_whole_or_absent(tmp_path / "out", whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.lock", ".whole.lock", "out", "raw", "whole"]


def assert_whole_or_absent(folder: Path, whole: Path) -> None:
    if folder.exists():
        files = {str(file.relative_to(folder)) for file in folder.rglob("*")}
        assert files == {str(file.relative_to(whole)) for file in whole.rglob("*")}
        assert not any(".histories" in file for file in files)
        for split in SPLITS:
            assert pl.read_parquet(folder / f"{split}.parquet").equals(pl.read_parquet(whole / f"{split}.parquet"))
