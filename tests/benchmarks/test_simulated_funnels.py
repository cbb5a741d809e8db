"""The simulated funnels: their truth is that of their labels, and their figures are what they say."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.simulated_funnels import __main__ as program
from benchmarks.simulated_funnels import tables
from benchmarks.simulated_funnels.funnels import FUNNELS, Truth, draw, truth_of

ROWS = 60_000


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("name", FUNNELS)
def test_labels_happen_as_often_as_the_truth_says(name):
    """Over all rows, and where the truth is above its median; a step needs the one before."""
    drawn = draw(replace(FUNNELS[name], num_rows=ROWS), seed=1)
    labels, truth = drawn.splits["test"].arrays["labels"].astype(int), drawn.truth
    assert (np.diff(labels, axis=1) <= 0).all()
    for at in (slice(None), truth.buy_after_click > np.median(truth.buy_after_click)):
        for found, expected in ((labels[at, 0], truth.click[at]), (labels[at, -1], truth.buy[at])):
            deviation = np.sqrt((expected * (1 - expected)).sum()) / len(expected)
            assert abs(found.mean() - expected.mean()) < 4 * deviation
    rates = labels[:, 0].mean(), labels[:, -1].mean()
    wanted = np.cumprod(FUNNELS[name].rates)
    assert rates == pytest.approx((wanted[0], wanted[-1]), rel=0.1, abs=3e-4)


def test_delays_hide_purchases_of_young_rows_from_training_only():
    late, known = (draw(replace(FUNNELS[name], num_rows=ROWS), seed=1) for name in ("delays", "mild"))
    shares = [
        [drawn.splits[split].arrays["labels"][:, -1].mean() for split in ("train", "valid", "test")]
        for drawn in (late, known)
    ]
    assert shares[0][0] < 0.93 * shares[1][0]
    assert shares[0][1] < 0.93 * shares[1][1]
    assert shares[0][2] == pytest.approx(shares[1][2], rel=0.15)


def test_the_truth_is_a_mean_over_the_unobserved_driver():
    logits = np.array([[-1.0, 0.5], [2.0, -3.0]])
    driver = np.random.default_rng(0).normal(size=(400_000, 1, 1))
    click, buy = np.moveaxis(sigmoid(logits + driver), -1, 0)
    found = truth_of(logits, hidden=1.0)
    expected = [click.mean(0), (click * buy).mean(0), (click * buy).mean(0) / click.mean(0), buy.mean(0)]
    np.testing.assert_allclose(found, expected, rtol=0.01)
    without = truth_of(logits, hidden=0.0)
    np.testing.assert_allclose(without, [*sigmoid(logits).T[:1], sigmoid(logits).prod(1), *[sigmoid(logits)[:, 1]] * 2])


def test_strong_selection_shows_the_rows_that_convert():
    """And an unobserved driver makes clicked rows better than their ids say."""
    ratio = {}
    for name in ("mild", "strong", "strong, hidden"):
        truth = draw(replace(FUNNELS[name], num_rows=ROWS), seed=1).truth
        clicked = (truth.buy_after_click * truth.click).sum() / truth.click.sum()
        ratio[name] = clicked / truth.buy_after_click.mean(), (truth.buy_after_click / truth.buy_if_clicked).mean()
    assert ratio["mild"][0] < 1.7 < 2 < ratio["strong"][0]
    assert ratio["strong"][1] == pytest.approx(1)
    assert ratio["strong, hidden"][1] > 1.3


def test_interactions_are_no_sum_of_effects():
    """A sum of effects of four fields of six explains little of the truth, though it is given it."""
    shares = {}
    for name in ("mild", "interactions"):
        drawn = draw(replace(FUNNELS[name], num_rows=ROWS), seed=1)
        target = program.logit(drawn.truth.buy_after_click[:5000])
        features = tables._one_hot(drawn.ids["test"][:5000]).toarray()[:, :180]  # the four smaller fields
        effects, *_ = np.linalg.lstsq(features, target - target.mean(), rcond=None)
        shares[name] = np.var(features @ effects) / np.var(target)
    assert shares["mild"] > 0.5
    assert shares["interactions"] < 0.25


def test_figures_by_hand():
    truth = Truth(*(np.array(x) for x in ([0.5, 0.5, 0.1], [0.25, 0.05, 0.01], [0.5, 0.1, 0.1], [0.4, 0.1, 0.1])))
    clicked = np.array([True, False, False])
    found = program.figures(truth, clicked, truth.click, np.array([0.125, 0.05, 0.01]))
    error = 500 * (np.log(2) + np.log(2 / 3))
    assert found["error"] == pytest.approx(error / 3)
    assert (found["clicked error"], found["unclicked error"]) == pytest.approx((error, 0))
    assert (found["bias"], found["clicked bias"]) == pytest.approx((0.45 / 0.7 - 1, -0.5))
    assert found["error if clicked"] != pytest.approx(found["error"])
    exact = program.figures(truth, clicked, truth.click, truth.buy)
    assert (exact["error"], exact["buy error"], exact["slope"]) == pytest.approx((0, 0, 1))
    constant = program.figures(truth, clicked, truth.click, 0.3 * truth.click)
    assert (constant["slope"], constant["correlation"]) == (0, 0)


def test_logistic_regression_is_nearest_where_the_truth_is_additive():
    drawn = draw(replace(FUNNELS["mild"], num_rows=ROWS), seed=1)
    clicked = drawn.splits["test"].arrays["labels"][:, 0] == 1
    ways = tables.predictions(tables.logistic_regression, drawn)
    errors = {way: program.figures(drawn.truth, clicked, *found)["error"] for way, found in ways.items()}
    rate = np.full(len(clicked), 0.15)
    assert errors["clicked rows"] < 30 < errors["entire space"]
    assert errors["clicked rows"] < 1e3 * program.excess(drawn.truth.buy_after_click, rate).mean() / 2
