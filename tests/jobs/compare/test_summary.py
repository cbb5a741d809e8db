"""What the tables say, against SciPy and by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from torchrec_mtl.jobs.compare import summary
from torchrec_mtl.jobs.compare.summary import Scores
from torchrec_mtl.metrics import METRICS
from torchrec_mtl.systems import SYSTEMS
from torchrec_mtl.tasks import TaskChain

TASKS = TaskChain(["click", "purchase"])
KEYS = [
    ("click", "impressions", "auc"),
    ("purchase", "impressions", "auc"),
    ("purchase", "after click", "conditional_auc"),
    ("purchase", "after click", "marginal_auc"),
]
ALL_KEYS = [key for name in METRICS for key in summary.keys(TASKS, name, METRICS[name])]


def scores(title, *by_seed, seeds=(0, 1, 2)):
    system = next(system for system in SYSTEMS.values() if system.title == title)
    return Scores(system, seeds, dict.fromkeys(ALL_KEYS, np.array(by_seed)))


COLLECTED = {
    "single_task": scores("Single-Task", 0.60, 0.61, 0.62),
    "mmoe": scores("MMoE", 0.66, 0.65, 0.64),
    "tafe": scores("TAFE", 0.70, 0.69, 0.71),
    "tafe_wo_tsa": scores("TAFE w/o TSA", 0.68, 0.69, 0.67),
}


def rows(collected, system, metric="auc"):
    compared = summary.comparison_rows(collected, TASKS, metric, METRICS[metric])
    return [row for row in compared if row["model"] == system]


def test_keys_have_the_whole_space_first():
    assert summary.keys(TASKS, "auc", METRICS["auc"]) == KEYS
    assert summary.keys(TASKS, "log_loss", METRICS["log_loss"])[-1] == ("purchase", "after click", "log_loss")


def test_a_model_is_held_to_the_best_baseline_and_an_ablation_to_its_model():
    for row in rows(COLLECTED, "tafe"):
        assert row["against"] == "MMoE"
        assert row["difference"] == pytest.approx(0.05)
        assert row["p_value"] == pytest.approx(stats.ttest_rel([0.70, 0.69, 0.71], [0.66, 0.65, 0.64]).pvalue)
        assert row["mean"] == pytest.approx(0.70)
        assert row["std"] == pytest.approx(0.01)
        assert row["rela_impr"] == pytest.approx(0.20 / 0.11 - 1)
        assert row["gain"] == pytest.approx(0.70 / 0.61 - 1)
    for row in rows(COLLECTED, "tafe_wo_tsa"):
        assert row["against"] == "TAFE"
        assert row["difference"] == pytest.approx(-0.02)
    assert all("against" not in row for row in rows(COLLECTED, "mmoe"))  # it is the best one


def test_where_lower_is_better_the_best_baseline_is_the_lowest():
    for row in rows(COLLECTED, "tafe", "log_loss"):
        assert (row["metric"], row["against"]) == ("log_loss", "Single-Task")
        assert row["difference"] == pytest.approx(0.70 - 0.61)
    assert "against" in rows(COLLECTED, "mmoe", "log_loss")[0]


def test_calibration_is_held_to_the_one_nearest_to_one():
    some = {"mmoe": scores("MMoE", 1.2, 1.3, 1.1), "ple": scores("PLE", 0.9, 0.9, 0.9), "tafe": COLLECTED["tafe"]}
    assert rows(some, "tafe", "calibration")[0]["against"] == "PLE"


def test_gains_are_of_auc_alone():
    assert "rela_impr" in rows(COLLECTED, "tafe")[0]
    assert not {"rela_impr", "gain"} & set(rows(COLLECTED, "tafe", "log_loss")[0])


def test_the_test_is_over_the_seeds_that_both_have():
    some = {**COLLECTED, "tafe": scores("TAFE", 0.69, 0.71, seeds=(1, 2))}
    expected = stats.ttest_rel([0.69, 0.71], [0.65, 0.64]).pvalue
    assert rows(some, "tafe")[0]["p_value"] == pytest.approx(expected)


def test_one_seed_has_no_deviation_and_no_test():
    one = {system: Scores(s.system, (0,), {k: v[:1] for k, v in s.values.items()}) for system, s in COLLECTED.items()}
    row = rows(one, "tafe")[0]
    assert math.isnan(row["std"])
    assert math.isnan(row["p_value"])


def test_without_a_spread_of_the_differences_p_is_not_defined():
    """A t-test of a constant difference gives p = 0."""
    some = {**COLLECTED, "tafe": scores("TAFE", 0.70, 0.69, 0.68)}  # 0.04 above MMoE with every seed
    row = rows(some, "tafe")[0]
    assert row["difference"] == pytest.approx(0.04)
    assert math.isnan(row["p_value"])
    assert math.isnan(row["p_holm"])


def test_p_values_are_corrected_for_the_number_of_tests_of_one_question():
    compared = summary.comparison_rows(COLLECTED, TASKS, "auc", METRICS["auc"])
    by_question = summary.tests(compared)
    assert {changed: len(tested) for changed, tested in by_question.items()} == {None: 8, "tafe": 4}  # in four columns
    for tested in by_question.values():
        smallest = min(row["p_value"] for row in tested)
        assert min(row["p_holm"] for row in tested) == pytest.approx(len(tested) * smallest)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values):
    for level in (0.01, 0.05, 0.5):
        rejected = set()
        for number_left in range(len(p_values), 0, -1):  # the smallest of those left, until one is not rejected
            smallest = min(set(range(len(p_values))) - rejected, key=p_values.__getitem__)
            if p_values[smallest] * number_left > level:
                break
            rejected.add(smallest)
        assert rejected == {place for place, p in enumerate(summary.holm(p_values)) if p <= level}


def test_noise_is_of_the_models_alone():
    for key in KEYS:
        deviation, highest_less_lowest = summary.noise(COLLECTED, key)
        assert deviation == pytest.approx(0.01)  # every model's own
        assert highest_less_lowest == pytest.approx(0.70 - 0.61)


def test_without_single_task_there_is_no_gain():
    assert "gain" not in rows({"mmoe": COLLECTED["mmoe"], "tafe": COLLECTED["tafe"]}, "tafe")[0]
