"""The yardsticks of a comparison, against scikit-learn on one-hot columns that are made otherwise."""

import csv
from dataclasses import replace

import lightgbm
import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from tests.jobs import funnel
from torchrec_mtl.__main__ import main
from torchrec_mtl.data import SPLITS, Field, Schema, load_schema
from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.compare import job, table_models
from torchrec_mtl.jobs.compare.protocols import PROTOCOLS
from torchrec_mtl.jobs.compare.table_models import TABLE_MODELS, check_data, fit_config
from torchrec_mtl.jobs.compare.table_rows import read_rows
from torchrec_mtl.jobs.datasets import open_split
from torchrec_mtl.kinds import SquaredError
from torchrec_mtl.metrics import METRICS
from torchrec_mtl.modules.id_hash import ANY_ID
from torchrec_mtl.tasks import Task, TaskForest

TASKS = list(funnel.SCHEMA.tasks)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return funnel.prepare(tmp_path_factory.mktemp("data") / "tiny")


def splits(data):
    schema = load_schema(data)
    return schema, {split: open_split(data, split, schema) for split in SPLITS}


def measured(data, name, *candidate, seed=0, part="test"):
    """The result of a fit, and its measurements on a split by task, space and metric."""
    schema, rows = splits(data)
    result = table_models.train(fit_config(TABLE_MODELS[name], candidate, seed, "auc"), schema, rows, METRICS)
    return result, {(r["task"], r["space"], r["metric"]): r["value"] for r in result[part]}


def one_hot(frame: pl.DataFrame, train: pl.DataFrame) -> np.ndarray:
    users = np.array([[user == each for each in range(20)] for user in frame["user"]])
    items = np.array([[item == each for each in range(10)] for item in frame["item"]])
    tags = np.array([[list(row).count(tag) for tag in range(6)] for row in frame["tags"]])
    price = (frame["price"].to_numpy() - train["price"].mean()) / train["price"].std(ddof=0)
    return np.hstack([users, items, tags, price[:, None]]).astype(float)


@pytest.mark.parametrize("name", ["logistic_regression", "logistic_regression_by_steps"])
def test_a_logistic_regression_is_that_of_one_hot_columns(data, name):
    frames = {split: pl.read_parquet(data / f"{split}.parquet") for split in SPLITS}
    train, test = frames["train"], frames["test"]
    p = np.ones(len(test))
    probabilities = {}
    for place, task in enumerate(TASKS):
        rows = train
        if name.endswith("by_steps") and place:
            rows = train.filter(pl.col(TASKS[place - 1]) == 1)
        model = LogisticRegression(C=0.2, tol=1e-8, max_iter=10_000).fit(one_hot(rows, rows), rows[task])
        own = model.predict_proba(one_hot(test, rows))[:, 1]
        p = p * own if name.endswith("by_steps") else own
        probabilities[task] = p
    _, found = measured(data, name, "C=0.2")
    for task in TASKS:
        loss, auc = (measure(test[task], probabilities[task]) for measure in (log_loss, roc_auc_score))
        assert found[task, "impressions", "log_loss"] == pytest.approx(loss, rel=3e-4)
        assert found[task, "impressions", "auc"] == pytest.approx(auc, abs=1e-3)
    clicked = (test["click"] == 1).to_numpy()
    ratio = (probabilities["cart"] / probabilities["click"])[clicked]
    auc = roc_auc_score(test["cart"].to_numpy()[clicked], ratio)
    assert found["cart", "after click", "conditional_auc"] == pytest.approx(auc, abs=2e-3)


@pytest.mark.parametrize("name", ["lightgbm", "lightgbm_by_steps"])
def test_light_gbm_finds_the_signal_and_repeats_itself(data, name):
    result, found = measured(data, name, "num_leaves=7", "min_data_in_leaf=20")
    again, _ = measured(data, name, "num_leaves=7", "min_data_in_leaf=20")
    assert again == {**result, "samples_per_second": again["samples_per_second"]}
    assert result["num_parameters"] > 7
    for task in TASKS:
        assert found[task, "impressions", "auc"] > 0.7
        assert found[task, "impressions", "calibration"] == pytest.approx(1, abs=0.3)
    assert (found["purchase", "after cart", "share_above_previous"] == 0) == name.endswith("by_steps")


def test_light_gbm_sees_categories_and_lists(data, monkeypatch):
    """Ids are categories; a list is its first id and its length, in every split, whatever its rows."""
    seen = []

    def dataset(data, label, *, categorical_feature, **options):
        seen.append((data, categorical_feature))
        return original(data, label, categorical_feature=categorical_feature, **options)

    original = lightgbm.Dataset
    monkeypatch.setattr(lightgbm, "Dataset", dataset)
    measured(data, "lightgbm", "num_leaves=7")
    (ids, categories), *_ = seen
    frame = pl.read_parquet(data / "train.parquet")
    assert categories == [0, 1, 2]
    assert (ids[:, 0] == frame["user"].to_numpy()).all()
    assert (ids[:, 2] == [tags[0] if len(tags) else -1 for tags in frame["tags"]]).all()
    assert (ids[:, 3] == frame["tags"].list.len().to_numpy()).all()
    assert ids[:, 4] == pytest.approx(frame["price"].to_numpy(), rel=1e-6)


def test_a_large_training_split_is_drawn_evenly(data, monkeypatch):
    monkeypatch.setattr(table_models, "MOST_ROWS", 500)
    schema, rows = splits(data)
    kept = read_rows(rows["train"], schema, 500)
    assert 430 < len(kept.labels) < 570
    assert sum(kept.columns[2].lengths) == len(kept.columns[2].values)
    assert measured(data, "logistic_regression", "C=1")[1]["click", "impressions", "auc"] > 0.6


def test_weights_of_zero_leave_rows_out(data):
    schema, rows = splits(data)
    read = read_rows(rows["train"], schema)
    read.weights[::2, 1] = 0
    kept = table_models._measured(read, schema.tasks, 1, by_steps=True)
    assert (kept == ((np.arange(len(kept)) % 2 == 1) & (read.labels[:, 0] == 1))).all()


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [
        (
            Schema("s", [Field("a", 3)], TaskForest(Task("spend", kind=SquaredError()))),
            "that are 0 or 1, not spend",
        ),
        (Schema("s", [Field("a", ANY_ID)], TaskForest(Task("buy"))), "fields with a vocabulary, not a"),
    ],
)
def test_other_data_are_refused(schema, sentence):
    with pytest.raises(InputError, match=sentence):
        check_data(schema)


def test_table_models_stand_in_the_tables(data, tmp_path, monkeypatch, capsys):
    models = {name: replace(model, candidates=model.candidates[:2]) for name, model in TABLE_MODELS.items()}
    monkeypatch.setattr(job, "KNOWN", {**job.KNOWN, **models})
    protocol = replace(PROTOCOLS["paper"], search=((),), sweep={})
    monkeypatch.setitem(job.PROTOCOLS, "small", protocol)
    output = ["--output", str(tmp_path / "out"), "training.batch_size=256", "embedding_dim=4"]
    wanted = [
        "--datasets",
        str(data),
        "--seeds",
        "2",
        "--models",
        "lightgbm_by_steps,logistic_regression,shared_bottom",
    ]
    assert main(["compare", "--protocol", "small", *wanted, *output]) == 0
    with (tmp_path / "out" / "tiny" / "comparison.csv").open() as stream:
        rows = {(row["model"], row["task"], row["metric"]): row for row in csv.DictReader(stream)}
    assert {model for model, *_ in rows} == {"lightgbm_by_steps", "logistic_regression", "shared_bottom"}
    assert float(rows["logistic_regression", "click", "auc"]["std"]) == 0
    assert float(rows["shared_bottom", "click", "auc"]["std"]) > 0
    page = (tmp_path / "out" / "tiny" / "report.html").read_text()
    assert "LightGBM, by steps" in page
    assert "num_leaves=15" in page
    assert "C=0.00" in page
    efficiency = (tmp_path / "out" / "tiny" / "efficiency.json").read_text()
    assert "LightGBM" not in efficiency
