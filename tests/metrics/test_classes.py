"""Metrics of classes: scikit-learn's, what a weight counts, several ranks, the whole funnel."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from tests.metrics.seats import on_seats
from tests.metrics.test_parts import SPREAD, spread
from torchrec_mtl import Classes, Ordinal, Task, TaskForest
from torchrec_mtl.errors import InputError
from torchrec_mtl.metrics import METRICS, MultiTaskMetrics, class_accuracy, class_log_loss, class_mae

OF_CLASSES = {name: metric for name, metric in METRICS.items() if metric.score in ("class", "grade")}


@st.composite
def classified_rows(draw):
    """Logarithms of probabilities of 2 to 5 classes, labels, whole weights with zeros."""
    num_rows, num_classes = draw(st.integers(1, 30)), draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = rng.integers(0, 4, num_rows).astype(float)
    weights[0] = 1
    p = rng.dirichlet(np.ones(num_classes), num_rows)
    return tuple(map(torch.from_numpy, (np.log(p), rng.integers(0, num_classes, num_rows).astype(float), weights)))


@given(classified_rows())
def test_they_are_those_of_scikit_learn(rows):
    log_p, labels, weights = (column.numpy() for column in rows)
    classes, p = np.arange(log_p.shape[1]), np.exp(log_p)
    expected = sklearn.accuracy_score(labels, p.argmax(1), sample_weight=weights)
    assert class_accuracy(*rows) == pytest.approx(expected, rel=1e-12)
    expected = sklearn.log_loss(labels, p, sample_weight=weights, labels=classes)
    assert class_log_loss(*rows) == pytest.approx(expected, rel=1e-9)
    median = np.array([classes[np.searchsorted(of_row.cumsum()[:-1], 0.5)] for of_row in p])
    expected = sklearn.mean_absolute_error(labels, median, sample_weight=weights)
    assert class_mae(*rows) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("name", OF_CLASSES)
@given(rows=classified_rows(), of_row=SPREAD)
def test_a_weight_counts_rows_and_ranks_share_them(name, rows, of_row):
    kept = [column[rows[2] > 0] for column in rows]
    expected = OF_CLASSES[name].function(*rows)
    repeated = (column.repeat_interleave(rows[2].long(), dim=0) for column in rows[:2])
    assert OF_CLASSES[name].function(*repeated) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    for value, _ in on_seats(OF_CLASSES[name].parts.over, spread(kept, of_row)):
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", OF_CLASSES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0.0, 3.0])}, "`labels` must be classes, from 0 to 2, but one is 3"),
        ({"labels": torch.tensor([0.5, 1.0])}, "`labels` must be classes, from 0 to 2, but one is 0.5"),
        ({"log_probabilities": torch.zeros(2)}, "`log_probabilities` (of shape [2]) must be [N, C]"),
        ({"log_probabilities": torch.zeros(3, 3)}, "`predictions` must have shape [2, 3], not [3, 3]"),
    ],
)
def test_what_is_no_class_is_refused(name, change, message):
    given_ = {"log_probabilities": torch.zeros(2, 3), "labels": torch.ones(2), "weights": None, **change}
    with pytest.raises(InputError, match=re.escape(message)):
        OF_CLASSES[name].function(**given_)


def test_classes_are_measured_where_the_step_before_happened():
    tasks = TaskForest(
        Task("buy"), Task("plan", after="buy", kind=Classes(3)), Task("stars", after="buy", kind=Ordinal(4))
    )
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(100, tasks.num_outputs))
    logits[:, 4:] = -np.sort(-logits[:, 4:], axis=1)
    labels = np.stack([rng.random(100) < 0.6, rng.integers(0, 3, 100), rng.integers(0, 4, 100)], 1).astype(float)
    metrics = MultiTaskMetrics(tasks)
    metrics.update(torch.from_numpy(logits), torch.from_numpy(labels))
    found = {(row["task"], row["space"], row["metric"]): row["value"] for row in metrics.compute()}
    assert {key[1] for key in found if key[0] != "buy"} == {"after buy"}
    bought = labels[:, 0] == 1
    plan = np.exp(logits[:, 1:4]) / np.exp(logits[:, 1:4]).sum(1, keepdims=True)
    above = np.pad(1 / (1 + np.exp(-logits[:, 4:])), ((0, 0), (1, 1)), constant_values=((0, 0), (1, 0)))
    for place, (task, p) in enumerate({"plan": plan, "stars": above[:, :-1] - above[:, 1:]}.items(), 1):
        truth, classes = labels[bought, place], np.arange(p.shape[1])
        expected = sklearn.log_loss(truth, p[bought], labels=classes)
        assert found[task, "after buy", "class_log_loss"] == pytest.approx(expected, rel=1e-5)
        assert found[task, "after buy", "class_accuracy"] == (p[bought].argmax(1) == truth).mean()
        assert ((task, "after buy", "class_mae") in found) == (task == "stars")
        assert found[task, "after buy", "num_rows"] == bought.sum()
    with pytest.raises(InputError, match=r"a whole number from 0 to 2, but entry \[0\] is 3.0"):
        metrics.update(torch.from_numpy(logits[:1]), torch.tensor([[1.0, 3.0, 0.0]]))
