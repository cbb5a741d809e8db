"""New rows are encoded as prepared ones, whatever the kinds of fields, the values, the format and the parts."""

import json
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.data.table import shops
from torchrec_mtl.data import read_split
from torchrec_mtl.data.schema import SPLITS, Schema
from torchrec_mtl.data.table import Bins, Integers, TableEncoder, Vocabulary, prepare_table
from torchrec_mtl.data.table.encoders import ENCODERS_FILE
from torchrec_mtl.data.table.sources import find_files, read_parts
from torchrec_mtl.errors import InputError
from torchrec_mtl.files import to_json

NOT_ENCODED = ["click", "buy", "ts", "note", "user_group"]


def prepared(folder: Path) -> dict[str, pl.DataFrame]:
    return {split: pl.read_parquet(folder / f"{split}.parquet") for split in SPLITS}


def rows_as_read(folder: Path, rows: list[dict], format: str) -> list[pa.RecordBatch]:
    """Rows with the histories that they bring, without labels, as read from a file of this format."""
    file = folder / f"new.{format}"
    rows = [{name: value for name, value in row.items() if name not in ("click", "buy", "note")} for row in rows]
    if format in ("csv", "tsv"):
        rows = [
            {**row, **{name: shops.joined(row[name]) for name in ("recent", "clicked", "any_recent")}} for row in rows
        ]
    shops.write_file(file, rows, format, pa.int64() if isinstance(rows[0]["user"], int) else pa.string())
    return [part.batch for found in find_files(str(file)) for part in read_parts(found, [])]


@settings(max_examples=12, phases=[Phase.explicit, Phase.generate], suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    format=st.sampled_from(shops.FORMATS),
    integer_keys=st.booleans(),
    missing=st.sampled_from([0.0, 0.2, 0.9]),
    num_parts=st.integers(1, 4),
)
def test_new_rows_are_encoded_as_prepared_ones_and_as_an_oracle_says(
    seed: int, format: str, integer_keys: bool, missing: float, num_parts: int
) -> None:
    generator = np.random.default_rng(seed)
    rows = shops.draw(generator, int(generator.integers(8, 60)), integer_keys, missing)
    if format in ("csv", "tsv"):
        rows = [shops.as_text(row) for row in rows]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shop = shops.write(folder / "raw", rows, format, num_parts)
        prepare_table(shops.table(shop.path, format), folder / "out")
        files, encoder = prepared(folder / "out"), TableEncoder.load(folder / "out")
        oracle = shops.Oracle(shop.splits()[0])
        brought = {row["note"]: row for row in shops.with_histories(rows)}
        for split, of_split in zip(SPLITS, shop.splits(), strict=True):
            file = files[split].drop(NOT_ENCODED)
            assert files[split]["note"].to_list() == [row["note"] for row in of_split]
            of_split = [brought[row["note"]] for row in of_split]
            batches = rows_as_read(folder, of_split, format)
            encoded = pl.concat([encoder.encode(batch) for batch in batches])
            assert encoded.select(file.columns).equals(file, null_equal=False), split
            one_by_one = [encoder.encode(batch.slice(row, 1)) for batch in batches for row in range(batch.num_rows)]
            assert pl.concat(one_by_one[:5]).equals(encoded.head(5))
            for row, found in zip(of_split, file.to_dicts(), strict=True):
                expected = oracle.encode(row)
                assert found.keys() == expected.keys()
                for column, value in expected.items():
                    same = found[column] == value if column != "age" else abs(found[column] - value) < 1e-3
                    assert same, (split, column, row.get(column), found[column], value)
            assert len(read_split(folder / "out", split)) == len(of_split)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared table of all kinds of fields."""
    folder = tmp_path_factory.mktemp("encoders")
    rows = shops.draw(np.random.default_rng(0), 80, integer_keys=False, missing=0.1)
    shop = shops.write(folder / "raw", rows, "parquet")
    return prepare_table(shops.table(shop.path), folder / "out")


def new_rows(**changes: list) -> pa.RecordBatch:
    rows = shops.with_histories(shops.draw(np.random.default_rng(1), 6, integer_keys=False, missing=0.1))
    columns = {name: [row[name] for row in rows] for name in rows[0]} | changes
    return pa.record_batch({name: values for name, values in columns.items() if values is not None})


def test_saved_encoders_are_the_same_when_loaded_and_saved_again(folder: Path, tmp_path: Path) -> None:
    encoder = TableEncoder.load(folder)
    again = encoder.save(tmp_path)
    assert again == Schema.load(folder).vocabulary_digest
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (folder / file.name).read_bytes()
    assert TableEncoder.load(tmp_path).encode(new_rows()).equals(encoder.encode(new_rows()))
    assert repr(TableEncoder.load(tmp_path).table) == repr(encoder.table)


def test_columns_that_no_field_reads_are_not_needed(folder: Path) -> None:
    unused = dict.fromkeys(("click", "buy", "note"))
    assert TableEncoder.load(folder).encode(new_rows(**unused)).height == 6


def test_columns_without_any_value_are_encoded_as_missing(folder: Path) -> None:
    encoder = TableEncoder.load(folder)
    names = [name for name in new_rows().schema.names if name not in ("ts", "click", "buy", "note")]
    encoded = encoder.encode(new_rows(**{name: [None] * 6 for name in names}))
    assert encoded["tags"].to_list() == encoded["recent"].to_list() == [[]] * 6
    assert encoded["item"].to_list() == [0] * 6
    assert encoded["age_missing"].to_list() == [1] * 6


# ruff: noqa: E501
WRONG = {
    "a column is missing": ({"city": None}, "rows: column 'city' is missing"),
    "a history is missing": ({"recent": None}, "rows: column 'recent' is missing"),
    "integers for strings": ({"user": [1] * 6}, "field 'user' must have string values, as when it was fitted, not integer"),
    "lists for values": ({"user": [["u001"]] * 6}, "field 'user' must have one value a row"),
    "values for lists": ({"tags": ["a"] * 6}, "column 'tag_weights' must hold lists, as field 'tags' does|'tags' must have"),
    "values for a history": ({"recent": ["a"] * 6}, "column 'recent' must hold lists of 'item', newest last"),
    "lists for a dense number": ({"age": [[1.0]] * 6}, "column 'age' must hold one value a row"),
    "a weight too many": ({"tags": [["a"]] * 6, "tag_weights": [[1.0]] * 5 + [[1.0, 2.0]]}, "row 5 .*'tags' has ids, not 2"),
    "a weight missing": ({"tags": [["a"]] * 6, "tag_weights": [[1.0]] * 5 + [[None]]}, "row 5 .*weight must not be missing"),
    "an id too large": ({"weekday": [0, 1, 2, 3, 4, 7]}, "column 'weekday', row 5 .*id 7 must be .* below `num_ids` \\(=7\\)"),
    "a time missing": ({"ts": [None] * 6}, "column 'ts', row 0 .*time must not be missing"),
    "text for a number": ({"age": ["old"] * 6}, "column 'age', row 0 .*'old' must be a number"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_new_rows_that_are_wrong_are_refused_in_one_sentence(folder: Path, case: str) -> None:
    changes, message = WRONG[case]
    with pytest.raises(InputError, match=message) as error:
        TableEncoder.load(folder).encode(new_rows(**changes))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("rows: ")


def test_a_history_that_new_rows_bring_obeys_the_rules_of_its_field(tmp_path: Path) -> None:
    rows = shops.draw(np.random.default_rng(0), 40, integer_keys=False, missing=0)
    table = shops.table(shops.write(tmp_path / "raw", rows, "parquet").path)
    fields = [each for each in table.fields if each.name != "recent"]
    fields.append(shops.History("days", "weekday", last=2))
    table = shops.replace_fields(table, fields)
    encoder = TableEncoder.load(prepare_table(table, tmp_path / "out"))
    brought = new_rows(days=[[1], [], None, [6, 0], [3], [2, 7]])
    with pytest.raises(InputError, match=r"column 'days', row 5 .*id 7 must be at least 0 and below `num_ids`"):
        encoder.encode(brought)
    assert encoder.encode(brought.slice(0, 5))["days"].to_list() == [[1], [], [], [6, 0], [3]]


def damage_text(file: Path) -> None:
    file.write_text(file.read_text().replace('"num_bins": 4', '"num_bins": 5'))


DAMAGE = {
    "no encoders": (ENCODERS_FILE, Path.unlink, "encoders.json: cannot be read as JSON"),
    "cut": (ENCODERS_FILE, lambda file: file.write_bytes(file.read_bytes()[:-9]), "encoders.json: cannot be read as JSON"),
    "not an object": (ENCODERS_FILE, lambda file: file.write_text("[]"), "must hold a JSON object"),
    "another version": (
        ENCODERS_FILE,
        lambda file: file.write_text(to_json({**json.loads(file.read_text()), "version": 9})),
        r"encoders.json: `version` \(=9\) must be 1: prepare the table again",
    ),
    "an edge changed": (ENCODERS_FILE, damage_text, "encoders.json: was changed after it was written"),
    "no vocabulary": ("vocabulary_0.parquet", Path.unlink, "vocabulary_0.parquet: must be the vocabulary .*missing or changed"),
    "vocabulary cut": (
        "vocabulary_1.parquet",
        lambda file: file.write_bytes(file.read_bytes()[:-9]),
        "vocabulary_1.parquet: must be the vocabulary .*missing or changed",
    ),
    "vocabulary empty": ("vocabulary_1.parquet", lambda file: file.write_bytes(b""), "must be the vocabulary"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_encoders_that_are_not_as_they_were_written_are_refused(folder: Path, tmp_path: Path, case: str) -> None:
    for file in [folder / ENCODERS_FILE, *folder.glob("vocabulary*")]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    name, change, message = DAMAGE[case]
    change(tmp_path / name)
    with pytest.raises(InputError, match=message):
        TableEncoder.load(tmp_path)


def test_ids_do_not_depend_on_the_order_of_rows_or_on_parts(tmp_path: Path) -> None:
    rows = shops.draw(np.random.default_rng(3), 50, integer_keys=False, missing=0.1)
    digests = set()
    for number in range(4):
        order = np.random.default_rng(number).permutation(len(rows))
        shop = shops.write(tmp_path / f"raw{number}", [rows[i] for i in order], "parquet", num_parts=1 + number)
        folder = prepare_table(shops.table(shop.path), tmp_path / f"out{number}")
        digests.add(Schema.load(folder).vocabulary_digest)
    assert len(digests) == 1


def test_the_digest_of_encoders_follows_what_ids_mean(folder: Path, tmp_path: Path) -> None:
    encoder = TableEncoder.load(folder)
    digests = {Schema.load(folder).vocabulary_digest}
    users = encoder.fitted["user"]["values"]
    for field, name, value in (("price", "edges", [0.0]), ("visits", "largest", 40), ("item", "values", users)):
        fitted = {**encoder.fitted, field: {**encoder.fitted[field], name: value}}
        digests.add(TableEncoder(encoder.table, fitted, encoder.multi_valued, encoder.value_types).save(tmp_path))
    assert len(digests) == 4


def test_a_vocabulary_of_a_field_without_values_has_two_ids(tmp_path: Path) -> None:
    rows = [{**row, "item": None} for row in shops.draw(np.random.default_rng(0), 30, False, 0)]
    shop = shops.write(tmp_path / "raw", rows, "parquet")
    encoder = TableEncoder.load(prepare_table(shops.table(shop.path), tmp_path / "out"))
    assert encoder.num_embeddings("item") == encoder.num_embeddings("recent") == 2
    assert Vocabulary("x").fit(pl.DataFrame({"value": [], "count": []}))["values"].values.to_pylist() == []
    assert encoder.encode(new_rows())["item"].to_list() == [
        0 if row is None else 1 for row in new_rows()["item"].to_pylist()
    ]


def test_fields_that_share_a_table_have_its_ids_and_its_rules(tmp_path: Path) -> None:
    rows = [
        {**row, "other_day": (row["weekday"] or 0) % 3, "liked": row["item"]}
        for row in shops.draw(np.random.default_rng(0), 40, False, 0)
    ]
    (tmp_path / "raw").mkdir()
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(tmp_path / "raw/a.parquet")
    days, prices = Integers("weekday", 7), Bins("price", 4)
    fields = [days, Integers("other_day", shares="weekday"), prices, Bins("p2", column="price", shares="price")]
    fields += [Vocabulary("item", min_count=3), Vocabulary("liked", shares="item")]
    folder = prepare_table(shops.replace_fields(shops.table(tmp_path / "raw"), fields), tmp_path / "out")
    for file in prepared(folder).values():
        assert file["p2"].to_list() == file["price"].to_list()
        assert file["liked"].to_list() == file["item"].to_list()
        assert file["other_day"].to_list() == [day % 3 for day in file["weekday"].to_list()]
    assert Schema.load(folder).embedding_configs(4)[0].num_embeddings == 7
    with pytest.raises(
        InputError, match=r"column 'other_day', row 5 .*id 7 must be at least 0 and below `num_ids` \(=7\)"
    ):
        TableEncoder.load(folder).encode(new_rows(other_day=[0, 1, 2, 3, 4, 7], liked=["x"] * 6, weekday=[0] * 6))
