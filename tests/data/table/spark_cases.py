"""What `test_spark.py` runs where pyspark is installed: each table is prepared on Spark and on one machine."""

import json
import sys
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from torchrec_mtl.data import read_split
from torchrec_mtl.data.schema import SPLITS, Schema
from torchrec_mtl.data.table import (
    AgeInDays,
    AnyId,
    Bins,
    ByHash,
    ByTime,
    Delay,
    Dense,
    Hashed,
    History,
    Integers,
    LogRound,
    Table,
    TableEncoder,
    TimeOf,
    Vocabulary,
    prepare_table,
)
from torchrec_mtl.data.table.spark import prepare_table_on_spark
from torchrec_mtl.errors import REDACTED, InputError, redacted
from torchrec_mtl.tasks import TaskChain

FILES, ROWS_OF_FILE = 3, 120
TASKS = TaskChain(["click", "buy"])
START = datetime(2026, 11, 1, tzinfo=timezone.utc)


@pytest.fixture(scope="module")
def spark(tmp_path_factory):
    from pyspark.sql import SparkSession

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        local = {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
        small = {"spark.ui.enabled": "false", "spark.sql.shuffle.partitions": "3"}
        folder = {"spark.local.dir": str(tmp_path_factory.mktemp("spark"))}
        builder = SparkSession.builder.master("local[2]").config(map={**local, **small, **folder})
        session = builder.getOrCreate()
        yield session
        session.stop()


def rows(seed: int, num_rows: int, integer_keys: bool = False) -> list[dict[str, Any]]:
    """Raw rows; many have one time, so that histories have ties within and between files."""
    generator = np.random.default_rng(seed)

    def maybe(value: Any) -> Any:
        return None if generator.random() < 0.15 else value

    def key(name: str, number: int) -> str | int:
        value = int(generator.integers(number))
        return value if integer_keys else f"{name} {value} ü"

    found = []
    for number in range(num_rows):
        click = int(generator.random() < 0.5)
        tags = [key("tag", 6) for _ in range(generator.integers(4))]
        found.append(
            {
                "user": key("u", 7),
                "item": maybe(key("i", 30)),
                "tags": tags,
                "tag_weights": [round(float(generator.random()), 3) for _ in tags],
                "city": maybe(key("c", 20)),
                "weekday": maybe(int(generator.integers(7))),
                "price": maybe(round(float(generator.normal(0, 20)), 3)),
                "created": maybe(START - timedelta(minutes=int(generator.integers(10**6)))),
                "visits": maybe(int(generator.integers(-20, 1000))),
                "ts": START + timedelta(hours=3 * int(generator.integers(40))),
                "note": f"row {number} of {seed}",
                "click": click,
                "buy": click * int(generator.random() < 0.5),
            }
        )
    return found


def write(file: Path, found: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        pl.DataFrame(found, infer_schema_length=None).write_parquet(file)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row, default=datetime.isoformat) + "\n" for row in found), encoding="utf-8")
    else:
        joined = [{**row, **{name: "|".join(map(str, row[name])) for name in ("tags", "tag_weights")}} for row in found]
        frame = pl.DataFrame(joined, infer_schema_length=None)
        frame.with_columns(pl.col("ts", "created").dt.strftime("%Y-%m-%dT%H:%M:%SZ")).write_csv(file)


def declare(source: Any, **further: Any) -> Table:
    separator = "|" if further.get("format") == "csv" else None
    weights = None if separator else "tag_weights"
    fields = [
        Vocabulary("user", min_count=2),
        Vocabulary("item", max_size=20),
        Vocabulary("tags", separator=separator, weights=weights, pooling="sum" if weights else "mean"),
        Hashed("city", 50),
        AnyId("any_item", column="item", num_rows=64),
        Integers("weekday", 7, missing=0),
        Bins("price", 4),
        Bins("account_age", 3, column=AgeInDays("created")),
        LogRound("visits"),
        TimeOf("hour", "hour", column="ts"),
        Dense("dense_price", column="price"),
    ]
    histories = [History("recent", "item", last=3, within="2d"), History("clicked", "city", last=2, where="click")]
    histories.append(History("any_recent", "any_item", last=2))
    split = ByTime("2026-11-04", "2026-11-05")
    arguments = {"time": "ts", "group": "user", "keep": ["note"], "split": split, **further}
    return Table("shop", str(source), TASKS, [*fields, *histories], **arguments)


def assert_equal(prepared: Path, expected: Path, parts: bool) -> None:
    """Everything is equal, and rows are in the same order."""
    assert Schema.load(prepared) == Schema.load(expected)
    files = {file.name for file in expected.iterdir() if file.suffix in (".json", ".tsv") or "vocabulary" in file.name}
    assert files == {file.name for file in prepared.iterdir() if file.is_file() and file.stem not in SPLITS}
    for name in files:
        assert (prepared / name).read_bytes() == (expected / name).read_bytes(), name
    for split in SPLITS:
        assert (prepared / f"{split}.parquet").is_dir() == parts
        assert pl.read_parquet(prepared / f"{split}.parquet").equals(pl.read_parquet(expected / f"{split}.parquet"))
        if not parts:
            read_split(prepared, split)
    assert TableEncoder.load(prepared).table == TableEncoder.load(expected).table


@pytest.mark.parametrize("seed", range(2))
def test_parts_of_parquet_with_histories(tmp_path, spark, seed):
    for number in range(FILES):
        write(tmp_path / "raw" / f"part-{number:05}.parquet", rows(10 * seed + number, ROWS_OF_FILE, bool(seed)))
    (tmp_path / "raw" / "_SUCCESS").touch()
    table = declare(tmp_path / "raw")
    expected = prepare_table(table, tmp_path / "one_machine")
    assert_equal(prepare_table_on_spark(table, tmp_path / "spark", spark), expected, parts=False)
    if seed:
        return
    in_parts = prepare_table_on_spark(table, tmp_path / "parts", spark, joined_rows=0)
    assert_equal(in_parts, expected, parts=True)
    assert len(list((in_parts / "train.parquet").iterdir())) == FILES
    assert prepare_table(table, in_parts) == in_parts  # prepared already


def test_hive_partitions_of_csv_with_bad_rows_put_aside(tmp_path, spark):
    for number in range(FILES):
        found = rows(number, ROWS_OF_FILE)
        found[7]["buy"], found[7]["click"] = 1, 0
        found[9]["weekday"] = 7
        write(tmp_path / "raw" / f"shop={number % 2:03}" / f"part-{number}.csv", found)
    table = declare(tmp_path / "raw", split=ByHash("note", 0.2, 0.2), keep=["shop"], format="csv")
    limits: dict[str, Any] = {"bad_rows": "quarantine", "bad_rows_limit": 2 * FILES}
    expected = prepare_table(table, tmp_path / "one_machine", **limits)
    assert (expected / "bad_rows.tsv").read_text().count("\n") == 2 * FILES
    assert_equal(prepare_table_on_spark(table, tmp_path / "spark", spark, **limits), expected, parts=False)
    assert_refused_alike(table, tmp_path, spark, bad_rows="quarantine", bad_rows_limit=2 * FILES - 1)
    assert_refused_alike(table, tmp_path, spark)


def test_given_splits_of_json_lines_without_histories(tmp_path, spark):
    for number, split in enumerate(SPLITS):
        write(tmp_path / split / "part-0.jsonl", rows(number, ROWS_OF_FILE))
        write(tmp_path / split / "part-1.jsonl", rows(number + 9, ROWS_OF_FILE))
    fields = [Vocabulary("item"), Vocabulary("city"), Dense("price"), Vocabulary("other", column="item", shares="item")]
    source = {split: str(tmp_path / split) for split in SPLITS}
    table = Table("shop", source, TASKS, fields, time="ts", group="user")
    expected = prepare_table(table, tmp_path / "one_machine")
    assert_equal(prepare_table_on_spark(table, tmp_path / "spark", spark), expected, parts=False)


@pytest.mark.parametrize("policy", ["mask", "correct"])
def test_late_labels_of_a_sample(tmp_path, spark, policy):
    """Labels are seen from the last time in all files, and files of training rows bring copies."""
    for number in range(FILES):
        of_file = rows(number, ROWS_OF_FILE)
        for position, row in enumerate(of_file):
            row["bought_at"] = row["ts"] + timedelta(hours=position % 30) if row["buy"] else None
        write(tmp_path / "raw" / f"part-{number}.parquet", of_file)
    late = Delay("buy", time="bought_at", window="1d", policy=policy, wait="2h" if policy == "correct" else None)
    table = replace(declare(tmp_path / "raw"), delays=[late])
    expected = prepare_table(table, tmp_path / "one_machine", sample=0.7)
    findings = (expected / "report.json").read_text()
    assert (" 0 training rows stand there once more" in findings) == (policy == "mask")
    assert_equal(prepare_table_on_spark(table, tmp_path / "spark", spark, sample=0.7), expected, parts=False)


def test_workers_redact(tmp_path, spark):
    found = [rows(number, ROWS_OF_FILE) for number in range(2)]
    wrong_label(found)
    for number, of_file in enumerate(found):
        write(tmp_path / "raw" / f"part-{number}.parquet", of_file)
    with redacted():
        sentence = assert_refused_alike(declare(tmp_path / "raw"), tmp_path, spark)
    assert sentence.endswith(f"label {REDACTED} must be 0 or 1")


def assert_refused_alike(table: Table, folder: Path, spark: Any, **limits: Any) -> str:
    """Both engines refuse with one sentence, and leave nothing that looks whole."""
    sentences = []
    for prepare in (prepare_table, lambda *args, **further: prepare_table_on_spark(*args, spark, **further)):
        with pytest.raises(InputError) as refusal:
            prepare(table, folder / "refused", **limits)
        sentences.append(str(refusal.value))
        assert [file.name for file in folder.iterdir() if "refused" in file.name] == [".refused.lock"]
    assert sentences[0] == sentences[1]
    return sentences[0]


def wrong_label(found: list[list[dict[str, Any]]]) -> None:
    found[1][3]["click"] = 2


def no_column(found: list[list[dict[str, Any]]]) -> None:
    for row in found[1]:
        del row["price"]


def other_type(found: list[list[dict[str, Any]]]) -> None:
    for row in found[1]:
        row["item"] = 5


def only_training_rows(found: list[list[dict[str, Any]]]) -> None:
    for row in found[0] + found[1] + found[2]:
        row["ts"] = START


@pytest.mark.parametrize(
    ("breaks", "sentence"),
    [
        (wrong_label, "part-1.parquet: column 'click', row 3 (counted from 0): label 2 must be 0 or 1"),
        (no_column, "part-1.parquet: column 'price' is missing"),
        (other_type, "part-1.parquet: field 'item' must have"),
        (only_training_rows, "split 'valid' of `source`"),
    ],
)
def test_one_sentence_for_wrong_input(tmp_path, spark, breaks, sentence):
    found = [rows(number, ROWS_OF_FILE) for number in range(3)]
    breaks(found)
    for number, of_file in enumerate(found):
        write(tmp_path / "raw" / f"part-{number}.parquet", of_file)
    assert sentence in assert_refused_alike(declare(tmp_path / "raw"), tmp_path, spark)


def test_a_file_that_is_cut_short(tmp_path, spark):
    for number in range(3):
        write(tmp_path / "raw" / f"part-{number}.parquet", rows(number, ROWS_OF_FILE))
    file = tmp_path / "raw" / "part-2.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    assert "part-2.parquet: cannot be read" in assert_refused_alike(declare(tmp_path / "raw"), tmp_path, spark)
