"""Tasks that are values: kinds, heads, losses and metrics, by scikit-learn or a formula in float64."""

import math

import numpy as np
import torch
from sklearn import metrics as sklearn

from tests.fuzz.cases.drawn import floats, integer, one_of, weights
from tests.fuzz.cell import Case
from torchrec_mtl import (
    ZILN,
    Binary,
    Classes,
    Huber,
    Ordinal,
    Quantile,
    SquaredError,
    Task,
    TaskForest,
    losses,
    metrics,
    modules,
)

TASKS = TaskForest(Task("buy"), Task("spend", after="buy", kind=ZILN()), Task("dwell", kind=Quantile((0.5, 0.9))))


def _kind_judge(given, kind):
    assert kind.num_outputs == (3 if kind.name == "ziln" else len(given.get("levels", [0])))
    assert kind.allows(torch.tensor([0.0, 1.0])).all()


def _quantile_judge(given, kind):
    _kind_judge(given, kind)
    assert all(0 < level < 1 for level in kind.levels)


def _classes_judge(given, kind):
    assert kind.num_outputs == given["num_classes"] - (kind.name == "ordinal")
    assert kind.allows(torch.tensor([0.0, 1.0])).all()


KINDS = {
    "Binary": Case(Binary, lambda rng: {}, _kind_judge),
    "SquaredError": Case(SquaredError, lambda rng: {}, _kind_judge),
    "ZILN": Case(ZILN, lambda rng: {}, _kind_judge),
    "Huber": Case(Huber, lambda rng: {"delta": float(rng.random() + 0.1)}, _kind_judge),
    "Classes": Case(Classes, lambda rng: {"num_classes": integer(rng, 2, 5)}, _classes_judge),
    "Ordinal": Case(Ordinal, lambda rng: {"num_classes": integer(rng, 2, 5)}, _classes_judge),
    "Quantile": Case(Quantile, lambda rng: {"levels": one_of(rng, (0.5,), (0.1, 0.9))}, _quantile_judge),
}


def _statistics(rng):
    positive = integer(rng, 0, 9)
    return modules.LabelStatistics(positive + 1, *(float(x) for x in (3.0, rng.random() + 0.1)), positive, 1.0, 0.5)


def _towers(tasks):
    towers = modules.TaskTowers(3, 4, (3,))
    modules.give_heads(towers, tasks)
    return towers


def _heads_judge(given, towers):
    assert towers([torch.zeros(2, 4)] * 3).shape == (2, TASKS.num_outputs)


def _started(spend, dwell):
    towers = _towers(TASKS)
    modules.start_values(towers, {"spend": spend, "dwell": dwell})
    return towers


def _started_judge(given, towers):
    assert towers([torch.zeros(2, 4)] * 3).isfinite().all()
    torch.testing.assert_close(float(towers.towers[1].output.shift[1]), float(given["spend"].log_mean))


MODULES = {
    "give_heads": Case(_towers, lambda rng: {"tasks": TASKS}, _heads_judge),
    "start_values": Case(_started, lambda rng: {"spend": _statistics(rng), "dwell": _statistics(rng)}, _started_judge),
}


def _value_batch(rng):
    num_rows = one_of(rng, 1, 4)
    logits = floats(rng, num_rows, TASKS.num_outputs)
    logits[:, 3] = logits[:, 3].abs() + 0.1
    labels = torch.cat([(floats(rng, num_rows, 1) > 0).float(), floats(rng, num_rows, 2).abs()], dim=1)
    weight = one_of(rng, None, weights(rng, num_rows, 3))
    return {"logits": logits, "labels": labels, "weights": weight, "task_weights": [float(rng.random()), 2.0]}


def _value_loss(logits, labels, weights, task_weights):
    loss = losses.FunnelAndValues(losses.CrossEntropyLoss(TASKS.funnel), TASKS, task_weights=task_weights)
    return loss(logits, labels, weights)


def _loss_judge(given, result):
    logits, labels = (given[name].double().numpy() for name in ("logits", "labels"))
    weight = np.ones_like(labels) if given["weights"] is None else given["weights"].double().numpy()
    if not all(np.isfinite(each).all() for each in (logits, labels, weight)) or np.abs(logits).max(initial=0) > 1e6:
        return  # a value on a device is not read
    if (logits[:, 3] <= 0).any() or np.abs(labels).max(initial=0) > 1e6 or np.abs(weight).max(initial=0) > 1e6:
        return  # no head gives such a sigma
    buy, spend, dwell = labels.T
    bce = np.logaddexp(0, logits[:, 0]) - buy * logits[:, 0]
    above, log = spend > 0, np.log(np.where(spend > 0, spend, 1.0))
    density = log + np.log(logits[:, 3]) + math.log(2 * math.pi) / 2 + ((log - logits[:, 2]) / logits[:, 3]) ** 2 / 2
    ziln = np.logaddexp(0, logits[:, 1]) - above * logits[:, 1] + above * density
    z = dwell[:, None] - logits[:, 4:]
    pinball = np.maximum(np.array([0.5, 0.9]) * z, np.array([-0.5, -0.1]) * z).mean(1)
    counts = weight[:, 1] * (buy == 1) * (weight[:, 0] != 0)
    first, second = given["task_weights"]
    total = weight[:, 0] * bce + first * counts * ziln + second * weight[:, 2] * pinball
    np.testing.assert_allclose(float(result), total.sum() / max(len(total), 1), rtol=1e-4, atol=1e-4)


LOSSES = {"FunnelAndValues": Case(_value_loss, _value_batch, _loss_judge)}


def _rows(rng):
    num_rows = one_of(rng, 1, 2, 9, 30)
    predictions = floats(rng, num_rows) * 3
    return {
        "predictions": one_of(rng, predictions, predictions.round()),
        "labels": floats(rng, num_rows).abs() * one_of(rng, 0.0, 1.0, 1.0),
        "weights": one_of(rng, None, weights(rng, num_rows)),
    }


def _kept(given):
    weight = given["weights"]
    weight = np.ones(len(given["labels"])) if weight is None else weight.double().numpy()
    kept = weight > 0
    return given["predictions"].double().numpy()[kept], given["labels"].double().numpy()[kept], weight[kept]


def _judge(expected, given, result):
    predictions, labels, weight = _kept(given)
    wanted = expected(predictions, labels, weight) if len(labels) else math.nan
    np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-7, equal_nan=True)


def _of(function, expected):
    return Case(function, _rows, lambda given, result: _judge(expected, given, result))


def _ratio(predictions, labels, weight):
    return (weight * predictions).sum() / (weight * labels).sum() if (weight * labels).sum() > 0 else math.nan


def _quantiles(rng):
    given = _rows(rng)
    levels = torch.full_like(given["predictions"], 0.9)
    return {**given, "predictions": torch.stack([given["predictions"], levels], dim=1)}


def _pinball_judge(given, result):
    predictions, labels, weight = _kept(given)
    above, levels = labels - predictions[:, 0], predictions[:, 1]
    losses_ = np.maximum(levels * above, (levels - 1) * above)
    wanted = np.average(losses_, weights=weight) if len(labels) else math.nan
    np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-7, equal_nan=True)


def _gini_judge(given, result):
    labels = _kept(given)[1]
    assert math.isnan(result) or result <= 1 + 1e-6 or (labels < 0).any()


def _lift_judge(given, result):
    labels = _kept(given)[1]
    assert math.isnan(result) or result >= 0 or (labels < 0).any()


def _curve_judge(given, curve):
    assert (np.diff(curve.mean_prediction.numpy()) >= 0).all()
    assert len(curve.num_rows) <= given["num_bins"]
    assert curve.num_rows.sum() == len(_kept(given)[1])


def _classified(rng):
    num_rows, num_classes = one_of(rng, 1, 5, 30), integer(rng, 2, 4)
    return {
        "log_probabilities": floats(rng, num_rows, num_classes).log_softmax(1),
        "labels": torch.from_numpy(rng.integers(0, num_classes, num_rows)),
        "weights": one_of(rng, None, weights(rng, num_rows)),
    }


def _of_classes(function, error):
    def judge(given, result):
        _, labels, weight = _kept({**given, "predictions": given["labels"]})
        kept = slice(None) if given["weights"] is None else given["weights"] > 0
        errors = error(given["log_probabilities"].double()[kept].numpy(), labels.astype(int))
        wanted = np.average(errors, weights=weight) if len(labels) else math.nan
        np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-7, equal_nan=True)

    return Case(function, _classified, judge)


METRICS = {
    "class_accuracy": _of_classes(metrics.class_accuracy, lambda log_p, labels: log_p.argmax(1) == labels),
    "class_log_loss": _of_classes(metrics.class_log_loss, lambda log_p, labels: -log_p[np.arange(len(labels)), labels]),
    "class_mae": _of_classes(
        metrics.class_mae,
        lambda log_p, labels: np.abs((np.exp(log_p).cumsum(1)[:, :-1] < 0.5).sum(1) - labels),
    ),
    "rmse": _of(metrics.rmse, lambda p, y, w: sklearn.root_mean_squared_error(y, p, sample_weight=w)),
    "mae": _of(metrics.mae, lambda p, y, w: sklearn.mean_absolute_error(y, p, sample_weight=w)),
    "value_calibration": _of(metrics.value_calibration, _ratio),
    "gini": Case(metrics.gini, _rows, _gini_judge),
    "lift": Case(metrics.lift, _rows, _lift_judge),
    "pinball": Case(metrics.pinball, _quantiles, _pinball_judge),
    "value_curve": Case(metrics.value_curve, lambda rng: {**_rows(rng), "num_bins": integer(rng, 1, 5)}, _curve_judge),
}
