"""Metrics of values: scikit-learn's, definitions in plain Python, what a weight counts, and several ranks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from tests.metrics.seats import on_seats
from tests.metrics.test_parts import SPREAD, spread
from torchrec_mtl import ZILN, Quantile, SquaredError, Task, TaskForest
from torchrec_mtl.errors import InputError
from torchrec_mtl.metrics import (
    METRICS,
    MultiTaskMetrics,
    auc,
    gini,
    lift,
    mae,
    pinball,
    rmse,
    value_calibration,
    value_curve,
)

VALUES = {name: metric for name, metric in METRICS.items() if metric.score == "value"}


@st.composite
def valued_rows(draw):
    """Predictions with ties, values with zeros, whole weights with zeros."""
    num_rows, rng = draw(st.integers(2, 40)), np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    predictions = rng.normal(5, 3, num_rows)
    predictions = predictions.round() if draw(st.booleans()) else predictions
    labels = np.where(rng.random(num_rows) < 0.4, 0.0, rng.lognormal(size=num_rows))
    weights = rng.integers(0, 4, num_rows).astype(float)
    weights[0] = 1
    return tuple(map(torch.from_numpy, (predictions, labels, weights)))


@given(valued_rows())
def test_errors_are_those_of_scikit_learn(rows):
    predictions, labels, weights = (column.numpy() for column in rows)
    kept = {"sample_weight": weights}
    assert rmse(*rows) == pytest.approx(sklearn.root_mean_squared_error(labels, predictions, **kept), rel=1e-12)
    assert mae(*rows) == pytest.approx(sklearn.mean_absolute_error(labels, predictions, **kept), rel=1e-12)
    for level in (0.1, 0.5, 0.9):
        of_level = torch.stack([rows[0], torch.full_like(rows[0], level)], 1)
        expected = sklearn.mean_pinball_loss(labels, predictions, alpha=level, **kept)
        assert pinball(of_level, *rows[1:]) == pytest.approx(expected, rel=1e-12, abs=1e-15)
    total = float((weights * labels).sum())
    expected = float((weights * predictions).sum()) / total if total else math.nan
    assert value_calibration(*rows) == pytest.approx(expected, rel=1e-12, nan_ok=True)


def lorenz_gini(scores, labels, weights):
    """1 less twice the area below the Lorenz curve; tied rows are one piece of it."""
    total, weight, area, before = (labels * weights).sum(), weights.sum(), 0.0, 0.0
    for score in sorted(set(scores.tolist())):
        tied = scores == score
        share = (labels * weights)[tied].sum() / total
        area += weights[tied].sum() / weight * (before + share / 2)
        before += share
    return 1 - 2 * area


@given(valued_rows())
def test_gini_is_that_of_the_lorenz_curves(rows):
    predictions, labels, weights = (column.numpy()[rows[2].numpy() > 0] for column in rows)
    best = lorenz_gini(labels, labels, weights) if labels.sum() else 0.0
    expected = lorenz_gini(predictions, labels, weights) / best if best > 1e-9 else math.nan
    assert gini(*rows) == pytest.approx(expected, rel=1e-6, abs=1e-9, nan_ok=True)


@given(valued_rows(), st.floats(0.1, 1e6), SPREAD)
def test_gini_of_equal_labels_is_undefined(rows, value, of_row):
    """Also with weights that are rounded, and over ranks that round otherwise."""
    kept = [column[rows[2] > 0] for column in rows]
    columns = kept[0], torch.full_like(kept[0], value), kept[2] * 0.1
    assert math.isnan(gini(*columns))
    for found, _ in on_seats(VALUES["gini"].parts.over, spread(list(columns), of_row)):
        assert math.isnan(found)


@given(valued_rows())
def test_gini_of_events_is_twice_the_auc_less_one(rows):
    predictions, labels, weights = rows
    happened = (labels > 1).double()
    found, area = gini(predictions, happened, weights), auc(predictions, happened, weights)
    if not math.isnan(area):
        assert found == pytest.approx(2 * area - 1, abs=1e-9)


@pytest.mark.parametrize("name", VALUES)
@given(rows=valued_rows())
def test_a_weight_counts_rows(name, rows):
    predictions, labels, weights = rows
    times = weights.long()
    repeated = (column.repeat_interleave(times) for column in (predictions, labels))
    found = VALUES[name].function(*rows)
    assert found == pytest.approx(VALUES[name].function(*repeated), rel=1e-9, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("name", VALUES)
@given(rows=valued_rows(), of_row=SPREAD)
def test_a_metric_is_that_of_the_rows_of_all_ranks(name, rows, of_row):
    kept = [column[rows[2] > 0] for column in rows]
    expected = VALUES[name].function(*kept)
    for value, _ in on_seats(VALUES[name].parts.over, spread(kept, of_row)):
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True)


def test_lift_and_the_curve_by_decile():
    predictions, labels = torch.arange(20.0), torch.arange(20.0) ** 2
    curve = value_curve(predictions, labels)
    assert curve.positive_rate.tolist() == [(a**2 + (a + 1) ** 2) / 2 for a in range(0, 20, 2)]
    assert lift(predictions, labels) == pytest.approx((18**2 + 19**2) / 2 / float(labels.mean()))
    assert lift(-predictions, labels) == pytest.approx(0.5 / float(labels.mean()))
    assert lift(torch.zeros(20), labels) == pytest.approx(1.0)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": torch.tensor([1.0, math.inf])}, "`predictions` must be finite"),
        ({"labels": torch.tensor([1.0, math.nan])}, "`labels` must be finite"),
        ({"labels": torch.ones(2, 1)}, r"`labels` must have one dimension, not shape \[2, 1\]"),
        ({"weights": torch.tensor([1.0, -1.0])}, "`weights` must be finite and not negative"),
    ],
)
def test_what_cannot_be_measured_is_refused(name, change, message):
    given_ = {"predictions": torch.ones(2), "labels": torch.ones(2), "weights": None, **change}
    with pytest.raises(InputError, match=message):
        VALUES[name].function(**given_)


def test_a_funnel_with_values_is_measured_in_each_space():
    """Against the metrics of columns that are put together by hand."""
    tasks = TaskForest(
        Task("click"),
        Task("buy", after="click"),
        Task("spend", after="buy", kind=ZILN()),
        Task("dwell", after="click", kind=Quantile((0.2, 0.9))),
        Task("age", kind=SquaredError()),
    )
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, tasks.num_outputs))
    logits[:, 4] = rng.uniform(0.1, 1, 200)
    labels = np.zeros((200, 5))
    labels[:, :2] = np.cumprod(rng.random((200, 2)) < 0.6, axis=1)
    labels[:, 2:] = rng.lognormal(size=(200, 3))
    weights = rng.integers(0, 3, (200, 5)).astype(float)
    metrics = MultiTaskMetrics(tasks)
    columns = [torch.from_numpy(each).float() for each in (logits, labels, weights)]
    metrics.update(*(each[:150] for each in columns))
    metrics.update(*(each[150:] for each in columns))
    found = {(row["task"], row["space"], row["metric"]): row["value"] for row in metrics.compute()}
    assert not [key for key in found if key[0] == "dwell" and key[1] == "impressions"]
    assert not [key for key in found if key[0] in ("spend", "dwell", "age") and "auc" in key[2]]

    logits, labels, weights = (each.double().numpy() for each in columns)
    p = 1 / (1 + np.exp(-logits))
    spend = p[:, 2] * np.exp(logits[:, 3] + logits[:, 4] ** 2 / 2)
    bought = (labels[:, 1] == 1) & (weights[:, 1] > 0)
    kept = bought & (weights[:, 2] > 0)
    entire = kept | ((labels[:, 1] == 0) & (weights[:, 1] > 0))
    weight = np.where(kept, weights[:, 2], weights[:, 1])
    worth = np.where(kept, labels[:, 2], 0.0)
    clicked = (labels[:, 0] == 1) & (weights[:, 0] > 0) & (weights[:, 3] > 0)
    known = weights[:, 4] > 0
    by_hand = {
        ("spend", "after buy"): (spend[kept], labels[kept, 2], weights[kept, 2]),
        ("spend", "impressions"): ((p[:, 1] * spend)[entire], worth[entire], weight[entire]),
        ("age", "impressions"): (logits[known, 7], labels[known, 4], weights[known, 4]),
    }
    for (task, space), rows in by_hand.items():
        assert found[task, space, "num_rows"] == len(rows[0])
        for name, metric in VALUES.items():
            expected = metric.function(*map(torch.from_numpy, rows))
            assert found[task, space, name] == pytest.approx(expected, rel=1e-6), (task, space, name)
    errors = []
    for column, level in ((5, 0.2), (6, 0.9)):
        value, truth, of_row = logits[clicked, column], labels[clicked, 3], weights[clicked, 3]
        assert found["dwell", "after click", f"coverage_{level:g}"] == pytest.approx((truth <= value).mean())
        errors.append(sklearn.mean_pinball_loss(truth, value, alpha=level, sample_weight=of_row))
    assert found["dwell", "after click", "pinball"] == pytest.approx(np.mean(errors), rel=1e-6)
    curves = metrics.calibration_curves()
    assert list(curves) == ["click", "buy", "spend", "age"]
    expected = value_curve(*map(torch.from_numpy, by_hand["spend", "impressions"]))
    torch.testing.assert_close(curves["spend"].positive_rate, expected.positive_rate, rtol=1e-6, atol=1e-6)


def test_a_label_that_its_kind_does_not_allow_is_refused_where_it_counts():
    metrics = MultiTaskMetrics(TaskForest(Task("buy"), Task("spend", after="buy", kind=ZILN())))
    logits = torch.tensor([[0.0, 0.0, 0.0, 1.0]] * 2)
    metrics.update(logits, torch.tensor([[1.0, 3.0], [0.0, math.nan]]))
    with pytest.raises(InputError, match=r"`labels` must be finite and at least 0, but entry \[1\] is -1.0"):
        metrics.update(logits, torch.tensor([[1.0, 3.0], [1.0, -1.0]]))
    with pytest.raises(InputError, match=r"`logits` must be finite, but entry \[0, 2\] is inf"):
        metrics.update(logits / torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([[1.0, 3.0], [0.0, 0.0]]))
