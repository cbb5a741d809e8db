"""The oracle of the losses, against values calculated by hand."""

import numpy as np

from tests.oracles import bpcm, losses, tafe
from tests.oracles.random_parameters import close


def test_losses_by_hand():
    p = np.array([[0.5, 0.75], [0.25, 0.125], [0.5, 0.25]])
    y, w = np.array([[1, 1], [1, 0], [0, 0]]), np.array([[3.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    log, first = np.log, np.log([2, 4, 2])  # the first task's terms
    close(losses.cross_entropy(p, y), (first.sum() + 2 * log(4 / 3) + log(8 / 7)) / 3)
    close(losses.cross_entropy(p, y, w, [1.0, 10.0]), (3 * first[:2].sum() + 30 * log(4 / 3)) / 3)
    close([losses.calibrator(p), losses.calibrator(p, w)], [0.25 / 3, 2 * 0.25 / 3])
    close([losses.dependence(p, y), losses.dependence(p, y, w)], [(1 / 16 + 49 / 64 + 1 / 16) / 3, 2 / 16 / 3])
    close(bpcm.objective(p, y), losses.cross_entropy(p, y) + 0.05)
    close(tafe.objective(p, y, dependence_weight=2.0), losses.cross_entropy(p, y) + 2 * 57 / 64 / 3)
    q = np.array([[np.nan, 1.0], [np.nan, 0.5], [np.nan, 0.25]])
    close(losses.local_space(p, y, q), (first.sum() + log(4 / 3) + 2 * log(8 / 7)) / 3)


def test_step_propensity_by_hand():
    logits = np.log(np.array([[3.0, 1.0], [1.0, 3.0], [3.0, 1.0]]))  # p = (.75, .5), (.5, .75), (.75, .5)
    propensities = losses.step_propensity(logits, np.array([[1, 0], [1, 0], [1, 1]]))
    close(propensities, [[1, 0.5], [1, 0.001], [1, 1]])


def test_delayed_by_hand():
    p = np.array([[0.5, 0.25, 0.75], [0.5, 0.25, 0.75]])
    y, log = np.array([[1, 0, 0], [0, 1, 1]]), np.log
    weighted = 1.25 * log(2) + 1.25 * 0.75 * log(2)
    close(losses.delayed(p, y, [(0, 1, 2)]), (weighted + log(4 / 3) + log(4) + log(4) + log(4 / 3)) / 2)
    w = np.array([[2.0, 0, 0], [0, 0, 0]])
    close(losses.delayed(p, y, [(0, 1, 2)], w, [3.0, 1, 1]), 3 * 2 * 1.25 * log(2) / 2)


def test_focal_and_smoothed_by_hand():
    p, y, w = np.array([[0.5], [0.25]]), np.array([[1], [0]]), np.array([[2.0], [4.0]])
    log = np.log
    close(losses.focal(p, y, 2.0, 0.25), (0.25 * 0.25 * log(2) + 0.75 * log(4 / 3) / 16) / 2)
    close(losses.focal(p, y, 0.0, 0.5, w, [3.0]), 3 * losses.cross_entropy(p, y, w) / 2)
    close(losses.smoothed(p, y, 0.5), (log(2) + 0.75 * log(4 / 3) + 0.25 * log(4)) / 2)
    close(losses.smoothed(p, y, 0.0, w), losses.cross_entropy(p, y, w))


def test_pairwise_and_listwise_by_hand():
    log, groups = np.log, np.array([5, 5, 5, 6])
    s, y = log(np.array([[3.0], [1.0], [2.0], [9.0]])), np.array([[1], [0], [0], [1]])
    pairs = log(4 / 3) + log(5 / 3)  # 3 against 1, 3 against 2
    close(losses.pairwise(s, y, groups), pairs / 3 / 4)
    w = np.array([[2.0], [0.0], [1.0], [1.0]])
    close(losses.pairwise(s, y, groups, w, [10.0]), 10 * 2 * log(5 / 3) / 3 / 4)
    f = np.stack([-s, s], axis=2)  # 1 / 3, 1, 1 / 2, 1 / 9 for a label of 0
    negatives = log(11 / 6 / 3) - log(1) + log(11 / 6 / 3) - log(1 / 2)
    close(losses.listwise(f, y, groups), (log(2) - log(3) + negatives + 0) / 4)
    close(losses.listwise(f, y, groups, w), (2 * (log(8 / 3) - log(3)) + log((2 / 3 + 1 / 2) / 3) - log(1 / 2)) / 4)
