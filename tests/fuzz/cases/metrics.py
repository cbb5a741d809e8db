"""Metrics: scikit-learn's, or the formula in float64, on drawn rows with ties, masked rows and a single class."""

import math

import numpy as np
import torch
from sklearn import metrics as sklearn

from tests.fuzz.cases.drawn import chain, floats, integer, labels, one_of, weights
from tests.fuzz.cell import Case
from tests.fuzz.kinds import generator
from torchrec_mtl import TaskChain, metrics
from torchrec_mtl.metrics import METRICS, Metric, MultiTaskMetrics, Parts

CHAIN = TaskChain(["click", "cart", "buy"])


def _rows(rng, names=("logits", "labels", "weights")):
    num_rows = one_of(rng, 1, 2, 9, 30)
    scores = floats(rng, num_rows) * 3
    known = {
        "logits": one_of(rng, scores, scores.round()),
        "scores": one_of(rng, scores, scores.round()),
        "labels": torch.from_numpy((rng.random(num_rows) < one_of(rng, 0.0, 0.5, 0.5, 1.0)).astype(np.float32)),
        "weights": one_of(rng, None, weights(rng, num_rows)),
        "groups": torch.from_numpy(rng.integers(0, 4, num_rows)),
        "num_bins": integer(rng, 1, 5),
    }
    return {name: known[name] for name in names}


def _arrays(given, score):
    weight = given.get("weights")
    weight = np.ones(len(given[score])) if weight is None else weight.double().numpy()
    kept = weight > 0
    return given[score].double().numpy()[kept], given["labels"].double().numpy()[kept], weight[kept], kept


def _close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7, equal_nan=True)


def _sklearn_auc(scores, labels, weight):
    return sklearn.roc_auc_score(labels, scores, sample_weight=weight) if len(set(labels)) == 2 else math.nan


def _judge_auc(given, result):
    _close(result, _sklearn_auc(*_arrays(given, "scores")[:3]))


def _judge_gauc(given, result):
    scores, happened, weight, kept = _arrays(given, "scores")
    groups, total, impressions = given["groups"].numpy()[kept], 0.0, 0.0
    for group in set(groups.tolist()):
        rows = groups == group
        auc = _sklearn_auc(scores[rows], happened[rows], weight[rows])
        if not math.isnan(auc):
            total, impressions = total + auc * weight[rows].sum(), impressions + weight[rows].sum()
    _close(result, total / impressions if impressions else math.nan)


def _losses(scores, happened):
    return np.logaddexp(0.0, scores) - happened * scores


def _judge_log_loss(given, result):
    scores, happened, weight, _ = _arrays(given, "logits")
    _close(result, np.average(_losses(scores, happened), weights=weight) if len(scores) else math.nan)


def _judge_entropy(given, result):
    scores, happened, weight, _ = _arrays(given, "logits")
    if len(set(happened)) < 2:
        assert math.isnan(result)
        return
    rate = np.average(happened, weights=weight)
    entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
    _close(result, np.average(_losses(scores, happened), weights=weight) / entropy)


def _judge_calibration(given, result):
    scores, happened, weight, _ = _arrays(given, "logits")
    observed = (weight * happened).sum()
    _close(result, (weight / (1 + np.exp(-scores))).sum() / observed if observed else math.nan)


def _judge_curve(given, curve):
    scores, happened, *_ = _arrays(given, "logits")
    predicted, observed, num_rows = (column.double().numpy() for column in curve)
    assert num_rows.sum() == len(scores)
    assert len(num_rows) <= given["num_bins"]
    assert (np.diff(predicted) >= 0).all()
    assert ((observed >= 0) & (observed <= 1)).all()
    if given["weights"] is None:
        _close((predicted * num_rows).sum(), (1 / (1 + np.exp(-scores))).sum())
        _close((observed * num_rows).sum(), happened.sum())


def _two_logits(rng):
    shape = (one_of(rng, 1, 5),)
    return {"logits": floats(rng, *shape) * 5, "previous_logits": floats(rng, *shape) * 5}


def _log_ratio(given):
    log_p = [-np.logaddexp(0.0, -given[name].double().numpy()) for name in ("logits", "previous_logits")]
    return log_p[0] - log_p[1]


def _judge_log_conditional(given, result):
    if all(given[name].isfinite().all() for name in given):
        _close(result.numpy(), _log_ratio(given))


def _judge_conditional(given, result):
    if all(given[name].isfinite().all() for name in given):
        ratio = np.minimum(_log_ratio(given), math.log(1 - 1e-12))
        np.testing.assert_allclose(result.sigmoid().numpy(), np.exp(ratio), rtol=1e-6, atol=1e-300)


def _judge_relative(formula):
    def judge(given, result):
        _close(result, formula(float(given["auc"]), float(given["auc_base"])))

    return judge


def _rela_impr(auc, base):
    return (auc - 0.5) / (base - 0.5) - 1 if base > 0.5 else math.nan


def _gain(auc, base):
    return auc / base - 1 if base > 0 else math.nan


def _judge_suspicious(given, result):
    expected = (
        min(given["positives"], given["negatives"]) <= 0 or abs(given["auc"] - 0.5) <= 0.005 or given["auc"] >= 0.995
    )
    assert (result is not None) == expected, result


def _aucs(rng):
    return {"auc": float(rng.random()), "auc_base": float(rng.random())}


def _batch(rng, tasks=CHAIN):
    num_rows = one_of(rng, 1, 9)
    return {
        "logits": floats(rng, num_rows, len(tasks)) * 3,
        "labels": labels(rng, num_rows, tasks),
        "weights": one_of(rng, None, weights(rng, num_rows, len(tasks))),
        "groups": torch.from_numpy(rng.integers(0, 3, num_rows)),
    }


def _updated(logits, labels, weights, groups):
    collected = metrics.MultiTaskMetrics(CHAIN, with_groups=True)
    collected.update(logits, labels, weights, groups)
    return collected


def _judge_update(given, collected):
    values = {(row["task"], row["space"], row["metric"]): row["value"] for row in collected.compute()}
    weight = torch.ones_like(given["logits"]) if given["weights"] is None else given["weights"]
    for t, task in enumerate(CHAIN):
        rows = {"scores": given["logits"][:, t], "labels": given["labels"][:, t], "weights": weight[:, t]}
        _judge_auc(rows, values[task, "impressions", "auc"])
        _judge_log_loss({**rows, "logits": rows["scores"]}, values[task, "impressions", "log_loss"])
        _judge_gauc({**rows, "groups": given["groups"]}, values[task, "impressions", "gauc"])
        if t:
            _judge_after_a_step(given, weight, t, task, values)


def _judge_after_a_step(given, weight, t, task, values):
    space = f"after {CHAIN.names[t - 1]}"
    kept = (given["labels"][:, t - 1] == 1) & (weight[:, t - 1] > 0)
    columns = {name: given[name][kept] for name in ("logits", "labels")}
    ratio = _log_ratio({"logits": columns["logits"][:, t], "previous_logits": columns["logits"][:, t - 1]})
    rows = {"labels": columns["labels"][:, t], "weights": weight[kept, t]}
    for name, score in (("marginal_auc", columns["logits"][:, t]), ("conditional_auc", torch.from_numpy(ratio))):
        _judge_auc({**rows, "scores": score}, values[task, space, name])


def _collected(tasks, with_groups, metrics):
    return MultiTaskMetrics(tasks, with_groups, metrics)


def _judge_collected(given, collected):
    rows = _batch(generator("rows"), given["tasks"])
    collected.update(rows["logits"], rows["labels"], rows["weights"], rows["groups"] if given["with_groups"] else None)
    named = {row["metric"] for row in collected.compute()}
    assert {"num_rows", "positives"} <= named
    assert all(name in named for name in given["metrics"] if given["with_groups"] or name != "gauc")


def _judge_find(given, metric):
    assert metric is METRICS[given["name"]]


def _judge_measured(given, names):
    if given["space"] == "impressions" or given["metric"].score == "probability":
        assert names == {given["name"]: given["metric"].title}
    else:
        assert set(names) == {f"conditional_{given['name']}", f"marginal_{given['name']}"}


def _judge_metric(given, metric):
    assert metric.merit(1.0) >= metric.merit(0.5) or given["better"] == "lower"


def _judge_parts(given, parts):
    ones = torch.ones(2)
    _close(parts(torch.tensor([1.0, 4.0]), ones, torch.tensor([2.0, 1.0])), 2.0)


_SCORED = ("scores", "labels", "weights")
CASES = {
    "auc": Case(metrics.auc, lambda rng: _rows(rng, _SCORED), _judge_auc),
    "gauc": Case(metrics.gauc, lambda rng: _rows(rng, (*_SCORED, "groups")), _judge_gauc),
    "log_loss": Case(metrics.log_loss, _rows, _judge_log_loss),
    "normalized_entropy": Case(metrics.normalized_entropy, _rows, _judge_entropy),
    "calibration": Case(metrics.calibration, _rows, _judge_calibration),
    "calibration_curve": Case(
        metrics.calibration_curve, lambda rng: _rows(rng, ("logits", "labels", "weights", "num_bins")), _judge_curve
    ),
    "log_conditional": Case(metrics.log_conditional, _two_logits, _judge_log_conditional),
    "conditional_logits": Case(metrics.conditional_logits, _two_logits, _judge_conditional),
    "rela_impr": Case(metrics.rela_impr, _aucs, _judge_relative(_rela_impr)),
    "gain": Case(metrics.gain, _aucs, _judge_relative(_gain)),
    "suspicious": Case(
        metrics.suspicious,
        lambda rng: {
            "auc": one_of(rng, float(rng.random()), 0.5, 0.999),
            "positives": float(integer(rng, 0, 3)),
            "negatives": float(integer(rng, 0, 3)),
        },
        _judge_suspicious,
    ),
    "Metric": Case(
        Metric,
        lambda rng: {
            "function": metrics.auc,
            "title": "AUC",
            "better": one_of(rng, "higher", "lower", "one"),
            "score": one_of(rng, "ranking", "probability"),
            "grouped": one_of(rng, True, False),
            "parts": one_of(rng, None, METRICS["log_loss"].parts),
        },
        _judge_metric,
    ),
    "Parts": Case(
        Parts,
        lambda rng: {
            "of_rows": lambda scores, labels, weights: torch.stack([(weights * scores).sum(), weights.sum()]),
            "value": lambda parts: float(parts[:, 0].sum() / parts[:, 1].sum()),
            "by": one_of(rng, "any", "score", "group"),
        },
        _judge_parts,
    ),
    "MultiTaskMetrics": Case(
        _collected,
        lambda rng: {
            "tasks": chain(rng),
            "with_groups": one_of(rng, True, False),
            "metrics": {name: METRICS[name] for name in ("auc", "log_loss", "gauc")},
        },
        _judge_collected,
    ),
    "MultiTaskMetrics.update": Case(_updated, _batch, _judge_update),
    "find_metric": Case(
        metrics.find_metric,
        lambda rng: {
            "name": one_of(rng, "auc", "log_loss", "gauc"),
            "known": METRICS,
            "argument": "metrics",
            "with_groups": True,
        },
        _judge_find,
    ),
    "measured_as": Case(
        metrics.measured_as,
        lambda rng: {
            "name": "auc",
            "metric": METRICS[one_of(rng, "auc", "log_loss")],
            "space": one_of(rng, "impressions", "after click"),
        },
        _judge_measured,
    ),
}
