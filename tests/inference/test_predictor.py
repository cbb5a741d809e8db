"""Predictions do not depend on the form in which rows come."""

import numpy as np
import polars as pl
import pytest
import torch
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor

from torchrec_mtl import Predictor, TaskChain
from torchrec_mtl.data import Field, Schema
from torchrec_mtl.data.table import ByHash, Dense, History, Table, Vocabulary, prepare_table
from torchrec_mtl.data.table.encoders import TableEncoder
from torchrec_mtl.errors import InputError
from torchrec_mtl.inference import Calibration
from torchrec_mtl.models import SharedBottom
from torchrec_mtl.modules import FeatureArch

SCHEMA = Schema(
    "shop",
    [Field("item", 9), Field("tags", 5, multi_valued=True, weight_column="tag_weights")],
    TaskChain(["click", "buy"]),
    dense=["price"],
)
ROWS = [
    {"item": 3, "tags": [1, 4], "tag_weights": [0.5, 2.0], "price": 1.5},
    {"item": 8, "tags": [], "tag_weights": [], "price": -1.0},
    {"item": 0, "tags": [2], "tag_weights": [1.0], "price": 0.0},
]


def model_of(schema, seed=0):
    torch.manual_seed(seed)
    tables = EmbeddingBagCollection(tables=schema.embedding_configs(4), is_weighted=bool(schema.id_weight_columns))
    return SharedBottom(FeatureArch(tables, dense_in_features=len(schema.dense)), schema.tasks)


def test_all_forms_of_ids_give_the_same_scores():
    model = model_of(SCHEMA)
    predictor = Predictor(model, SCHEMA)
    frame = pl.DataFrame(ROWS, schema_overrides={"tags": pl.List(pl.Int64), "tag_weights": pl.List(pl.Float64)})
    expected = predictor.predict(ROWS).marginal
    forms = [
        frame,
        frame.to_arrow(),
        frame.to_arrow().to_batches()[0],
        frame.with_columns(pl.col("item").cast(pl.Int16)),
    ]
    for form in forms:
        np.testing.assert_array_equal(predictor.predict(form).marginal, expected)
    ids = KeyedJaggedTensor(
        ["item", "tags"],
        torch.tensor([3, 8, 0, 1, 4, 2]),
        torch.tensor([1.0, 1, 1, 0.5, 2, 1]),
        torch.tensor([1, 1, 1, 2, 0, 1]),
    )
    dense = torch.tensor([[1.5], [-1.0], [0.0]])
    np.testing.assert_array_equal(predictor.predict(ids, dense).marginal, expected)
    logits = model.eval()(dense, ids).double().sigmoid()
    np.testing.assert_allclose(expected, logits.detach().numpy(), rtol=1e-12)


def test_batches_do_not_change_scores():
    rows = [{**ROWS[n % 3], "item": n % 9} for n in range(50)]
    model = model_of(SCHEMA)
    whole = Predictor(model, SCHEMA).predict(rows).marginal
    for batch_size in (1, 7, 49):
        np.testing.assert_allclose(
            Predictor(model, SCHEMA, batch_size=batch_size).predict(rows).marginal, whole, rtol=1e-5
        )


def test_conditionals_and_the_ranking_score():
    predictions = Predictor(model_of(SCHEMA), SCHEMA).predict(ROWS, values={"click": 1, "buy": 20})
    click, buy = predictions.marginal.T
    np.testing.assert_allclose(predictions.conditional[:, 0], click)
    np.testing.assert_allclose(predictions.conditional[:, 1], np.minimum(buy / click, 1), rtol=1e-9)
    np.testing.assert_allclose(predictions.score, click + 20 * buy)
    assert predictions.to_polars().columns == ["click", "buy", "buy_after_click", "score"]


def test_a_calibration_is_applied():
    maps = {"click": {"slope": 1.0, "intercept": -1.0}, "buy": {"slope": 0.5, "intercept": 0.0}}
    calibration = Calibration(SCHEMA.tasks, "platt", maps)
    model = model_of(SCHEMA)
    before, after = (Predictor(model, SCHEMA, calibration=each).predict(ROWS) for each in (None, calibration))

    def odds(p):
        return np.log(p / (1 - p))

    np.testing.assert_allclose(odds(after.conditional[:, 0]), odds(before.conditional[:, 0]) - 1, rtol=1e-9)
    assert (after.marginal[:, 1] <= after.marginal[:, 0]).all()
    np.testing.assert_allclose(after.conditional[:, 1] * after.marginal[:, 0], after.marginal[:, 1], rtol=1e-12)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    rng = np.random.default_rng(0)
    rows = pl.DataFrame(
        {
            "user": rng.integers(0, 20, 400).astype(str),
            "item": [None if n == 0 else f"sku {n}" for n in rng.integers(0, 30, 400)],
            "price": [None if n > 2 else n for n in rng.normal(size=400)],
            "ts": rng.integers(10**9, 10**9 + 10**6, 400),
            "click": rng.integers(0, 2, 400),
        }
    )
    rows.write_parquet(folder / "rows.parquet")
    fields = [Vocabulary("user"), Vocabulary("item"), Dense("price"), History("recent", "item", last=5)]
    arguments = {"time": "ts", "time_unit": "s", "group": "user", "split": ByHash("user", 0.2, 0.2)}
    table = Table("shop", str(folder / "rows.parquet"), TaskChain(["click"]), fields, **arguments)
    return rows, prepare_table(table, folder / "prepared")


def test_raw_rows_are_scored_as_the_prepared_ones(raw):
    rows, prepared = raw
    schema, encoder = Schema.load(prepared), TableEncoder.load(prepared)
    model = model_of(schema)
    recent = [
        rows.filter((pl.col("user") == row["user"]) & (pl.col("ts") < row["ts"])).sort("ts")["item"].to_list()[-5:]
        for row in rows.iter_rows(named=True)
    ]
    given = rows.with_columns(pl.Series("recent", recent, pl.List(pl.String)))
    from_raw = Predictor(model, schema, encoder).predict(given.drop("click", "ts")).marginal
    ids = pl.concat([pl.read_parquet(prepared / f"{split}.parquet") for split in ("train", "valid", "test")])
    from_ids = Predictor(model, schema).predict(ids).marginal
    assert len(from_raw) == len(from_ids)
    np.testing.assert_allclose(np.sort(from_raw, axis=0), np.sort(from_ids, axis=0), rtol=1e-6)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "must have at least one row"),
        ([{"item": 3}], "column 'tags' is missing"),
        ([{**ROWS[0], "item": 9}], r"column 'item', row 0 .*id \(=9\)"),
        ([{**ROWS[0], "item": None}], "column 'item', row 0 .*must not be null"),
        ([{**ROWS[0], "item": [3]}], "column 'item' must hold one id a row"),
        ([{**ROWS[0], "tags": 3}], "column 'tags' must hold lists of ids"),
        ([{**ROWS[0], "price": float("nan")}], "column 'price', row 0 .*must be finite"),
        ([{**ROWS[0], "item": "3"}], "column 'item' must hold integers"),
        ([ROWS[0], {**ROWS[1], "price": "dear"}], "column 'price' must hold numbers, not String"),
        (3, r"`rows` \(of type int\) must be dictionaries, an Arrow table, a Polars frame or a KeyedJaggedTensor"),
    ],
)
def test_wrong_rows_are_one_sentence(rows, message):
    with pytest.raises(InputError, match=message):
        Predictor(model_of(SCHEMA), SCHEMA).predict(rows)


def test_wrong_arguments_are_one_sentence():
    predictor = Predictor(model_of(SCHEMA), SCHEMA)
    with pytest.raises(InputError, match="task 'by' must be one of"):
        predictor.predict(ROWS, values={"by": 3})
    with pytest.raises(InputError, match=r"`values` \(=nan\) of task 'buy' must be finite"):
        predictor.predict(ROWS, values={"buy": float("nan")})
    with pytest.raises(InputError, match="`batch_size`"):
        Predictor(model_of(SCHEMA), SCHEMA, batch_size=0)
