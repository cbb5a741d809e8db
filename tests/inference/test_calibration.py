"""Calibration against scikit-learn, and what must hold for any funnel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import log_loss

from torchrec_mtl import Task, TaskChain, TaskForest
from torchrec_mtl.errors import InputError
from torchrec_mtl.inference import Calibration, fit_calibration
from torchrec_mtl.inference.conditionals import conditional_log_odds, multiplied

CHAIN = TaskChain(["click", "buy"])
TREE = TaskForest(Task("click"), Task("like", after="click"), Task("buy", after="click"), Task("back", after="buy"))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def simulated(num_rows=4000, seed=0, skew=2.0):
    """Marginal logits that are too far from 0 by ``skew``, and labels."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(-0.5, 1, (num_rows, 2))
    happened = np.cumprod(rng.random((num_rows, 2)) < sigmoid(odds), axis=1)
    wrong = multiplied(sigmoid(skew * odds), CHAIN)
    return np.log(wrong) - np.log1p(-wrong), happened


@pytest.mark.parametrize("weighted", [False, True])
def test_isotonic_is_that_of_scikit_learn(weighted):
    logits, labels = simulated()
    weights = np.random.default_rng(1).integers(1, 4, labels.shape).astype(float) if weighted else None
    calibration = fit_calibration(logits, labels, CHAIN, "isotonic", weights)
    odds, found = conditional_log_odds(logits, CHAIN), calibration.apply(logits)
    rows = labels[:, 0] == 1
    for task, chosen in ((0, np.full(len(labels), True)), (1, rows)):
        of_rows = None if weights is None else weights[chosen, task]
        oracle = IsotonicRegression(out_of_bounds="clip")
        oracle.fit(odds[chosen, task], labels[chosen, task], sample_weight=of_rows)
        conditional = found[:, 0] if task == 0 else found[:, 1] / found[:, 0]
        least = 0.5 / ((chosen.sum() if weights is None else of_rows.sum()) + 1)
        expected = np.interp(odds[:, task], oracle.X_thresholds_, oracle.y_thresholds_.clip(least, 1 - least))
        np.testing.assert_allclose(conditional, expected, rtol=1e-9)


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_a_wrong_slope_is_mended_on_other_rows(method):
    logits, labels = simulated()
    calibration = fit_calibration(logits, labels, CHAIN, method)
    fresh, happened = simulated(seed=1)
    after = calibration.apply(fresh)
    for task in range(2):
        assert log_loss(happened[:, task], after[:, task]) < log_loss(happened[:, task], sigmoid(fresh[:, task])) - 0.02
        assert after[:, task].mean() == pytest.approx(happened[:, task].mean(), abs=0.02)


def test_platt_finds_the_line():
    logits, labels = simulated(num_rows=200_000)
    fitted = fit_calibration(logits, labels, CHAIN, "platt").maps
    for name in CHAIN:
        assert fitted[name]["slope"] == pytest.approx(0.5, abs=0.02)
        assert fitted[name]["intercept"] == pytest.approx(0, abs=0.03)


def test_platt_is_finite_where_classes_are_separable():
    logits, labels = np.array([[-3.0], [-2.0], [2.0], [3.0]]), np.array([[0], [0], [1], [1]])
    applied = fit_calibration(logits, labels, TaskChain(["click"]), "platt").apply(logits)
    assert ((applied > 0) & (applied < 1)).all()


@given(
    st.sampled_from([CHAIN, TREE]).flatmap(
        lambda tasks: st.tuples(
            st.just(tasks),
            arrays.arrays(np.float64, (40, len(tasks)), elements=st.floats(-30, 30)),
            arrays.arrays(np.bool_, (40, len(tasks))),
            st.sampled_from(["isotonic", "platt"]),
        )
    )
)
def test_a_child_is_never_likelier_than_its_parent(drawn):
    tasks, logits, happened, method = drawn
    labels = happened.astype(float)
    for task, parent in enumerate(tasks.parents):
        if parent is not None:
            labels[:, task] *= labels[:, parent]
    labels[0] = 1  # each step happens, and each does not where the step before happened
    for task in range(len(tasks)):
        labels[1 + task] = [each in tasks.ancestors(task) for each in range(len(tasks))]
    calibration = fit_calibration(logits, labels, tasks, method)
    applied = calibration.apply(logits)
    assert np.isfinite(applied).all()
    assert ((applied >= 0) & (applied <= 1)).all()
    for task, parent in enumerate(tasks.parents):
        if parent is not None:
            assert (applied[:, task] <= applied[:, parent]).all()


def test_a_label_of_weight_0_is_left_out():
    logits, labels = simulated(num_rows=500)
    weights = np.ones(labels.shape)
    weights[:100] = 0
    left_out = fit_calibration(logits, labels, CHAIN, "platt", weights)
    absent = fit_calibration(logits[100:], labels[100:], CHAIN, "platt")
    for name in CHAIN:
        assert left_out.maps[name] == pytest.approx(absent.maps[name])


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_what_is_saved_is_loaded(method, tmp_path):
    logits, labels = simulated(num_rows=500)
    calibration = fit_calibration(logits, labels, CHAIN, method)
    calibration.save(tmp_path)
    np.testing.assert_array_equal(Calibration.load(tmp_path, CHAIN).apply(logits), calibration.apply(logits))
    with pytest.raises(InputError, match=r"`maps` \(of \['click', 'buy'\]\) must be of the tasks, \['click'\]"):
        Calibration.load(tmp_path, TaskChain(["click"]))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"method": "isotonic"}', '{"method": 3, "maps": []}'])
def test_a_damaged_file_is_one_sentence(text, tmp_path):
    (tmp_path / "calibration.json").write_text(text)
    with pytest.raises(InputError, match=r"calibration\.json"):
        Calibration.load(tmp_path, CHAIN)


def test_a_step_that_never_happens_is_named():
    logits, labels = simulated(num_rows=500)
    labels[:, 1] = 0
    with pytest.raises(InputError, match=r"task 'buy' must have positives and negatives \(after click\)"):
        fit_calibration(logits, labels, CHAIN)
