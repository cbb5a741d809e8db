import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig

from tests.data.prepared import SCHEMA
from torchrec_mtl.data import Field, Schema
from torchrec_mtl.data.fingerprint import columns_text
from torchrec_mtl.errors import InputError
from torchrec_mtl.tasks import Task, TaskChain, TaskForest

TASKS = TaskChain(["click", "purchase"])


def test_round_trip(tmp_path: Path) -> None:
    SCHEMA.save(tmp_path)
    assert Schema.load(tmp_path) == SCHEMA


def test_columns_are_listed_once() -> None:
    schema = Schema("s", [Field("a", 2)], TaskChain(["t", "u"], weight_columns=["w", "w"]), ["x"], group="a")
    assert schema.columns == ("a", "x", "t", "u", "w")


def test_select_keeps_the_order_asked_for() -> None:
    assert SCHEMA.select(["tags", "store"]).field_names == ("tags", "store")
    with pytest.raises(InputError, match=r"field 'shop' must be one of data set 'shop': .*'store'"):
        SCHEMA.select(["store", "shop"])


def test_the_tables_of_a_schema_fit_it() -> None:
    schema = Schema("s", [Field("a", 3), Field("b", 20)], TASKS)
    collection = EmbeddingBagCollection(tables=schema.embedding_configs(embedding_dim=4))
    schema.check_fits(collection, TaskChain(["click", "purchase"], label_columns=["y1", "y2"]))
    assert {name: tuple(weight.shape) for name, weight in collection.state_dict().items()} == {
        "embedding_bags.t_a.weight": (3, 4),
        "embedding_bags.t_b.weight": (20, 4),
    }


def make_collection(feature: str, num_embeddings: int) -> EmbeddingBagCollection:
    config = EmbeddingBagConfig(
        name="table", embedding_dim=4, num_embeddings=num_embeddings, feature_names=["a", feature]
    )
    return EmbeddingBagCollection(tables=[config])


@pytest.mark.parametrize(
    ("feature", "num_embeddings", "tasks", "sentence"),
    [
        ("c", 20, TASKS, "feature 'c' of table 'table' must be a field of data set 's': ['a', 'b']"),
        (
            "b",
            19,
            TASKS,
            "`num_embeddings` (=19) of table 'table' must be at least that of its field 'b' in data set 's' (20)",
        ),
        (
            "b",
            20,
            TaskChain(["purchase", "click"]),
            "`tasks` (=purchase -> click) must be those of data set 's', in the same order: click -> purchase",
        ),
    ],
)
def test_a_model_that_does_not_fit(feature: str, num_embeddings: int, tasks: TaskChain, sentence: str) -> None:
    schema = Schema("s", [Field("a", 3), Field("b", 20)], TASKS)
    with pytest.raises(InputError, match=re.escape(sentence)):
        schema.check_fits(make_collection(feature, num_embeddings), tasks)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"fields": []}, "`fields` of data set 's' must not be empty"),
        ({"fields": [Field("a", 2), Field("a", 2)]}, "column 'a' of data set 's' must have one role, not 2"),
        ({"dense": ["a"]}, "column 'a' of data set 's' must have one role, not 2"),
        ({"fields": [Field("click", 2)]}, "column 'click' of data set 's' must have one role, not 2"),
        (
            {"num_rows": {"train": 0}},
            "`num_rows` (={'train': 0}) must give ['train', 'valid', 'test'] integers",
        ),
        ({"num_rows": {"dev": 1}}, "`num_rows` (={'dev': 1}) must give"),
    ],
)
def test_wrong_schema(arguments: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        Schema(**{"name": "s", "fields": [Field("a", 2)], "tasks": TASKS, **arguments})


@pytest.mark.parametrize("num_embeddings", [0, -1, 2.0, "2", True, None])
def test_wrong_cardinality(num_embeddings: object) -> None:
    sentence = f"`num_embeddings` (={num_embeddings!r}) of field 'a' must be an integer of at least 1"
    with pytest.raises(InputError, match=re.escape(sentence)):
        Field("a", num_embeddings)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"version": 3}, "schema.json: `version` (=3) must be 2, or 1, whose tasks are a chain"),
        ({"fields": None}, "schema.json: key 'fields' is missing"),
        (
            {"tasks": [{"name": "click", "before": "buy"}]},
            "a value is of the wrong kind (Task.__init__() got an",
        ),
        ({"fields": 3}, "schema.json: a value is of the wrong kind ('int' object is not iterable)"),
        (
            {"fields": [{"name": "a", "num_embeddings": 0, "multi_valued": False}]},
            "schema.json: `num_embeddings` (=0) of field 'a' must be an integer of at least 1",
        ),
    ],
)
def test_broken_file(tmp_path: Path, changes: dict, sentence: str) -> None:
    SCHEMA.save(tmp_path)
    file = tmp_path / "schema.json"
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    with pytest.raises(InputError, match=re.escape(sentence)):
        Schema.load(tmp_path)


def test_file_cut_in_half(tmp_path: Path) -> None:
    SCHEMA.save(tmp_path)
    text = (tmp_path / "schema.json").read_text()
    (tmp_path / "schema.json").write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match=r"schema\.json: cannot be read as JSON \(.*line \d+"):
        Schema.load(tmp_path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"schema\.json: no such file, so '.*' is not a prepared data set"):
        Schema.load(tmp_path)


def test_a_file_of_version_1_has_a_chain(tmp_path: Path) -> None:
    SCHEMA.save(tmp_path)
    file = tmp_path / "schema.json"
    tasks = {"names": ["click", "purchase"], "label_columns": ["c", "p"], "weight_columns": ["w", "w"]}
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": 1, "tasks": tasks}))
    assert Schema.load(tmp_path).tasks == TaskChain(["click", "purchase"], ["c", "p"], ["w", "w"])


def test_a_tree_is_kept(tmp_path: Path) -> None:
    tree = TaskForest(Task("click"), Task("like", after="click"), Task("buy", after="click", weight_column="w"))
    schema = Schema("s", [Field("a", 2)], tree)
    schema.save(tmp_path)
    assert Schema.load(tmp_path) == schema
    assert schema.columns == ("a", "click", "like", "buy", "w")


OPTIONS = ("shares", "embedding_dim", "pooling", "init_std")


def test_files_of_before_tables_had_options_load_and_keep_their_fingerprint(tmp_path: Path) -> None:
    SCHEMA.save(tmp_path)
    content = json.loads((tmp_path / "schema.json").read_text())
    for field in content["fields"]:
        for option in OPTIONS:
            del field[option]
    (tmp_path / "schema.json").write_text(json.dumps(content))
    assert Schema.load(tmp_path) == SCHEMA
    assert not any(option in columns_text(SCHEMA) for option in OPTIONS)


@pytest.mark.parametrize("option", [{"embedding_dim": 4}, {"pooling": "mean"}, {"init_std": 0.5}, {"shares": "other"}])
def test_options_of_a_table_are_saved_and_in_the_fingerprint(tmp_path: Path, option: dict) -> None:
    fields = [Field("tags", 4, multi_valued=True), Field("other", 4, multi_valued=True)]
    with_option = [replace(fields[0], **option), fields[1]]
    schemas = [Schema("shop", each, TaskChain(["click"])) for each in (fields, with_option)]
    assert columns_text(schemas[0]) != columns_text(schemas[1])
    schemas[1].save(tmp_path)
    assert Schema.load(tmp_path) == schemas[1]
