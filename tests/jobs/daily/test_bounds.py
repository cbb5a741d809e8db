"""The bounds of a day's figures."""

import math

import pytest

from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.daily.bounds import Bounds
from torchrec_mtl.tasks import TaskChain


def scored(auc: float, calibration: float = 1.0, entropy: float = 0.9, task: str = "click"):
    of = {"auc": auc, "calibration": calibration, "normalized_entropy": entropy}
    rows = [{"task": task, "space": "impressions", "metric": name, "value": value} for name, value in of.items()]
    return [*rows, {**rows[0], "space": "after click", "value": 0.0}]


@pytest.mark.parametrize(
    ("text", "figures", "broken"),
    [
        ("", scored(0.1, 9.0, 9.0), []),
        ("least_auc=0.6", scored(0.6), []),
        ("least_auc=0.6", scored(0.59), ["least_auc.click=0.6 (it is 0.5900)"]),
        ("least_auc=0.6,least_auc.click=0.5", scored(0.59), []),
        ("least_auc.buy=0.6", scored(0.59), []),
        ("most_auc_fall=0.05", scored(0.66), []),
        ("most_auc_fall=0.05", scored(0.64), ["most_auc_fall.click=0.05 (it is 0.0600)"]),
        ("most_calibration_error=0.2", scored(0.7, 1.19), []),
        ("most_calibration_error=0.2", scored(0.7, 0.79), ["most_calibration_error.click=0.2 (it is 0.2100)"]),
        ("most_normalized_entropy=1", scored(0.7, 1, 1.01), ["most_normalized_entropy.click=1.0 (it is 1.0100)"]),
        ("least_auc=0", scored(math.nan), ["least_auc.click=0.0 (it is undefined)"]),
        ("most_calibration_error=9", scored(0.7, math.nan), ["most_calibration_error.click=9.0 (it is undefined)"]),
        ("most_auc_fall=1", scored(math.nan), ["most_auc_fall.click=1.0 (it is undefined)"]),
    ],
)
def test_figures_beyond_a_bound_are_named(text, figures, broken):
    last_seven = [scored(auc) for auc in (math.nan, 0.6, 0.8, 0.6, 0.8, 0.7, 0.7)]
    assert Bounds.parse(text).broken(figures, [scored(0.0), scored(0.0), *last_seven]) == broken


def test_without_a_day_before_nothing_has_fallen():
    assert Bounds.parse("most_auc_fall=0").broken(scored(0.3), []) == []


@pytest.mark.parametrize("text", ["least_auc", "least_auc=high", "least_auc=nan", "least_auc.=0.5", "least_auc=0.5=1"])
def test_what_is_no_bound_is_refused(text):
    with pytest.raises(InputError, match=f"`bounds`: '{text}' must have the form kind=number or kind.task=number"):
        Bounds.parse(text)


def test_a_kind_or_a_task_that_there_is_not_is_refused():
    with pytest.raises(InputError, match=r"`bounds`: kind 'lest_auc' must be one of .*; the nearest is 'least_auc'"):
        Bounds.parse("lest_auc=1")
    with pytest.raises(InputError, match="'by'"):
        Bounds.parse("least_auc.by=1").check(TaskChain(["click", "buy"]))
