"""Metrics by name: which values are better, how a name is found, and a metric from outside the library."""

import dataclasses
import math
import pickle

import pytest
import torch
from sklearn.metrics import average_precision_score

from tests.foreign_metric import KNOWN
from tests.metrics.funnel import TASKS, by_name, funnel
from torchrec_mtl.errors import InputError
from torchrec_mtl.kinds import Binary
from torchrec_mtl.metrics import METRICS, MultiTaskMetrics, conditional_logits, find_metric, log_conditional, log_loss

BEST_AND_WORST = {
    "auc": (0.9, 0.6, 0.3),
    "gauc": (0.9, 0.6, 0.3),
    "log_loss": (0.1, 0.4, 2.0),
    "normalized_entropy": (0.8, 0.9, 1.1),
    "calibration": (1.01, 0.95, 1.2, 0.5, 3.0),
    "rmse": (0.0, 3.0, math.inf),
    "mae": (0.0, 3.0, math.inf),
    "gini": (1.0, 0.4, -1.0),
    "lift": (9.0, 1.0, 0.0),
    "value_calibration": (1.01, 0.95, 1.2, 0.5, 3.0),
    "pinball": (0.0, 3.0, math.inf),
    "class_accuracy": (1.0, 0.4, 0.0),
    "class_log_loss": (0.0, 3.0, math.inf),
    "class_mae": (0.0, 3.0, math.inf),
}


@pytest.mark.parametrize("name", METRICS)
def test_merit_falls_from_the_best_value_to_the_worst(name):
    merits = [METRICS[name].merit(value) for value in BEST_AND_WORST[name]]
    assert merits == sorted(merits, reverse=True)
    assert len(set(merits)) == len(merits)
    assert math.isnan(METRICS[name].merit(math.nan))


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_sent_to_another_process(name):
    """As `compare` does."""
    sent = pickle.loads(pickle.dumps(METRICS[name]))
    assert (sent.title, sent.function) == (METRICS[name].title, METRICS[name].function)


def test_calibration_is_best_at_one():
    merit = METRICS["calibration"].merit
    assert max([0.0, 0.9, 1.0, 1.1, 2.0], key=merit) == 1.0
    assert merit(0.75) == merit(1.25)


def test_after_a_step_ranking_takes_both_scores_and_probability_the_conditional_alone():
    ranked = dataclasses.replace(METRICS["log_loss"], score="ranking")
    metrics = MultiTaskMetrics(TASKS, metrics={"log_loss": METRICS["log_loss"], "ranked": ranked})
    logits, labels = funnel()["logits"], funnel()["labels"].clamp(min=0)
    metrics.update(logits, labels)
    values = by_name(metrics.compute())
    happened = labels[:, 1] == 1
    marginal, target = logits[happened, 2], labels[happened, 2]
    conditional = conditional_logits(marginal, logits[happened, 1])
    assert values["purchase", "after cart", "marginal_ranked"] == log_loss(marginal, target)
    quotient = log_conditional(marginal, logits[happened, 1])
    assert values["purchase", "after cart", "conditional_ranked"] == log_loss(quotient, target)
    assert values["purchase", "after cart", "log_loss"] == log_loss(conditional, target)
    assert values["purchase", "impressions", "ranked"] == values["purchase", "impressions", "log_loss"]


def test_a_metric_from_outside_is_measured_in_every_space():
    rows = funnel()
    metrics = MultiTaskMetrics(TASKS, metrics=KNOWN)
    metrics.update(rows["logits"], rows["labels"], rows["weights"])
    values = by_name(metrics.compute())
    happened = (rows["weights"][:, 1] > 0) & (rows["labels"][:, 1] == 1)
    marginal, quotient = rows["logits"][:, 2], log_conditional(rows["logits"][:, 2], rows["logits"][:, 1])
    for space, name, score in (
        ("impressions", "average_precision", marginal),
        ("after cart", "marginal_average_precision", marginal),
        ("after cart", "conditional_average_precision", quotient),
    ):
        kept = (rows["weights"][:, 2] > 0) & (happened | (space == "impressions"))
        expected = average_precision_score(rows["labels"][kept, 2], score[kept], sample_weight=rows["weights"][kept, 2])
        assert values["purchase", space, name] == pytest.approx(expected, rel=1e-12)
    of_events = {name for name, metric in KNOWN.items() if metric.score in Binary().scores}
    assert of_events - {"gauc"} <= {name for *_, name in values}  # there are no groups


def test_two_metrics_may_not_be_measured_under_one_name():
    clash = {"auc": METRICS["auc"], "marginal_auc": METRICS["log_loss"]}
    with pytest.raises(InputError, match=r"`metrics` \(='marginal_auc'\) must not have the name of 'auc' after a step"):
        MultiTaskMetrics(TASKS, metrics=clash)


def test_only_named_metrics_are_measured_and_never_on_an_empty_space():
    metrics = MultiTaskMetrics(TASKS, metrics={"average_precision": KNOWN["average_precision"]})
    metrics.update(torch.zeros(2, 3), torch.zeros(2, 3))
    values = by_name(metrics.compute())
    assert values["cart", "after click", "num_rows"] == 0
    assert math.isnan(values["cart", "after click", "conditional_average_precision"])
    names = {f"{score}average_precision" for score in ("", "conditional_", "marginal_")}
    assert {name for *_, name in values} == {"num_rows", "positives", "share_above_previous", *names}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("logloss", r"`metrics` \(='logloss'\) must be one of \['auc', .*\]; the nearest is 'log_loss'$"),
        ("f1", r"`metrics` \(='f1'\) must be one of \['auc', .*\]$"),
        ("gauc", r"`metrics` \(='gauc'\) must be a metric without groups, as the rows it measures have none"),
    ],
)
def test_an_unknown_name_raises_and_the_nearest_is_suggested(name, sentence):
    with pytest.raises(InputError, match=sentence):
        find_metric(name, METRICS, "metrics", with_groups=False)
    assert find_metric("gauc", METRICS, "metrics", with_groups=True) is METRICS["gauc"]


@pytest.mark.parametrize("wrong", [{"better": "max"}, {"score": "logits"}])
def test_an_unknown_direction_or_score_raises(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(InputError, match=rf"`{name}` \(='{value}'\) must be one of"):
        dataclasses.replace(METRICS["auc"], **wrong)
