"""Predicted values: by a predictor, by the graph of a package, and by a package."""

import copy
import math

import numpy as np
import pytest
import torch
from torchrec import EmbeddingBagCollection

from torchrec_mtl import ZILN, Classes, Huber, Ordinal, Predictor, Quantile, SquaredError, Task, TaskForest
from torchrec_mtl.data import Field, Schema
from torchrec_mtl.errors import InputError
from torchrec_mtl.inference import Calibration, Predictions
from torchrec_mtl.inference.package import export_package, load_package
from torchrec_mtl.inference.package.graph import InferenceGraph
from torchrec_mtl.inference.package.load import arguments_of
from torchrec_mtl.inference.predictor import read_rows
from torchrec_mtl.models import ESMM, SharedBottom
from torchrec_mtl.modules import LabelStatistics, start_values

TASKS = TaskForest(
    Task("click"),
    Task("buy", after="click"),
    Task("spend", after="buy", kind=ZILN()),
    Task("dwell", after="click", kind=Quantile((0.5, 0.9))),
    Task("age", kind=SquaredError()),
    Task("tip", after="buy", kind=Huber()),
    Task("plan", after="buy", kind=Classes(2)),
    Task("stars", kind=Ordinal(3)),
)
SCHEMA = Schema("shop", [Field("item", 9)], TASKS)
ROWS = [{"item": number} for number in (3, 8, 0)]
HALVED = Calibration(
    TASKS.funnel, "platt", {name: {"slope": 1.0, "intercept": float(np.log(0.5))} for name in TASKS.funnel}
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = ESMM(EmbeddingBagCollection(tables=SCHEMA.embedding_configs(4)), TASKS, tower_layer_sizes=(8,))
    statistics = {task.name: LabelStatistics(90, 30.0, 20.0, 60, 3.0, 0.5) for task in TASKS.values}
    for name, of_classes in {"plan": (30, 60), "stars": (50, 10, 30)}.items():
        statistics[name] = statistics[name]._replace(of_classes=of_classes)
    start_values(model, statistics)
    return model.eval()


@pytest.mark.parametrize("calibration", [None, HALVED], ids=["as it is", "calibrated"])
def test_a_value_is_multiplied_by_the_probability_of_the_step_before(model, calibration):
    predictor = Predictor(model, SCHEMA, calibration=calibration)
    found = predictor.predict(ROWS, values={"click": 0.1, "spend": 1.0, "age": -2.0})
    batch = read_rows(ROWS, SCHEMA).batch(torch.arange(3))
    logits = model(batch.dense_features, batch.sparse_features).detach().double().numpy()
    p = 1 / (1 + np.exp(-logits[:, :2]))
    if calibration is not None:
        p = HALVED.apply(logits[:, :2])
    spend = np.exp(logits[:, 3] + logits[:, 4] ** 2 / 2) / (1 + np.exp(-logits[:, 2]))
    np.testing.assert_allclose(found.marginal[:, :2], p, rtol=1e-9)
    values = np.stack([spend, logits[:, 7], logits[:, 8]], axis=1)
    worth = values * np.stack([p[:, 1], np.ones(3), p[:, 1]], axis=1)
    np.testing.assert_allclose(found.conditional[:, [2, 4, 5]], values)
    np.testing.assert_allclose(found.marginal[:, [2, 4, 5]], worth)
    assert np.isnan(found.marginal[:, 3]).all()
    np.testing.assert_allclose(found.further["dwell_0.9_after_click"], logits[:, 6])
    np.testing.assert_allclose(found.score, 0.1 * p[:, 0] + p[:, 1] * spend - 2 * logits[:, 7])
    assert list(found.columns()) == found.to_polars().columns == [
        "click", "buy", "spend", "age", "tip", "buy_after_click", "spend_after_buy", "tip_after_buy",
        "dwell_0.5_after_click", "dwell_0.9_after_click", "plan_0_after_buy", "plan_1_after_buy",
        "stars_0", "stars_1", "stars_2", "score",
    ]  # fmt: skip
    odds = np.exp(logits[:, 9:11])
    np.testing.assert_allclose(found.further["plan_1_after_buy"], odds[:, 1] / odds.sum(1))
    above = 1 / (1 + np.exp(-logits[:, 11:13]))
    np.testing.assert_allclose(found.further["stars_1"], above[:, 0] - above[:, 1], rtol=1e-9)


def test_quantiles_are_not_counted(model):
    with pytest.raises(InputError, match="`values` must not count 'dwell', which has no expected value"):
        Predictor(model, SCHEMA).predict(ROWS, values={"dwell": 1.0})


@pytest.mark.parametrize("calibration", [None, HALVED], ids=["as it is", "calibrated"])
def test_the_graph_of_a_package_has_the_scores_of_the_predictor(model, calibration):
    predictor = Predictor(model, SCHEMA, calibration=calibration)
    graph = InferenceGraph(copy.copy(model), TASKS, calibration=calibration).eval()
    given = arguments_of(read_rows(ROWS, SCHEMA).batch(torch.arange(3)), graph.keys, graph.is_weighted)
    scores = graph(given.dense_features, given.values, given.lengths, given.weights, graph.rows).double().numpy()
    found, expected = Predictions.of_scores(TASKS, scores), predictor.predict(ROWS)
    for name, column in expected.columns().items():
        np.testing.assert_allclose(found.columns()[name], column, rtol=1e-5, err_msg=name)


def test_values_alone_are_predicted():
    tasks = TaskForest(Task("spend", kind=ZILN()))
    schema = Schema("shop", [Field("item", 9)], tasks)
    model = SharedBottom(EmbeddingBagCollection(tables=schema.embedding_configs(4)), tasks)
    start_values(model, {"spend": LabelStatistics(90, 30.0, 20.0, 60, 3.0, 0.5)})
    found = Predictor(model, schema).predict(ROWS)
    assert found.to_polars().columns == ["spend"]
    assert 1 < found.marginal.min() <= found.marginal.max() < 1000


def test_a_step_that_is_never_expected_is_worth_nothing():
    tasks = TaskForest(Task("buy"), Task("spend", after="buy", kind=SquaredError()))
    found = Predictions.of_scores(tasks, np.array([[0.0, 0.0], [0.5, 5.0]]))
    assert found.conditional.tolist() == [[0.0, 0.0], [0.5, 10.0]]
    assert not math.isnan(found.marginal.sum())


@pytest.mark.verify
@pytest.mark.slow
def test_a_package_predicts_values(model, tmp_path):
    golden = read_rows(ROWS, SCHEMA).batch(torch.arange(3))
    SCHEMA.save(tmp_path)
    folder = export_package(model, TASKS, tmp_path / "package", golden, beside=(tmp_path / "schema.json",))
    package = load_package(folder)
    assert package.manifest.tasks == TASKS
    found, expected = (each.predict(ROWS, values={"spend": 1.0}) for each in (package, Predictor(model, SCHEMA)))
    for name, column in expected.columns().items():
        np.testing.assert_allclose(found.columns()[name], column, rtol=1e-5, err_msg=name)
