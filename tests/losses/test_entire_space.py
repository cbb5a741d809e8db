"""DCMT's and DDPO's objectives, against loops in float64, and what they claim, by exact enumeration."""
# ruff: noqa: N803, N806  (the papers' letters)

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.losses.strategies import few_examples, seeds
from tests.losses.test_every_loss import at_rest
from tests.oracles import chains
from tests.support import chain
from torchrec_mtl.errors import InputError
from torchrec_mtl.losses import DCMTLoss, DDPOLoss

READ = {DCMTLoss: "counterfactual_logits", DDPOLoss: "conversion_logits"}
both = pytest.mark.parametrize("make", READ)


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(seeds))
    B, T = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    return {
        "conditional": rng.normal(scale=2, size=(B, T)),
        "read": rng.normal(scale=2, size=(B, T - 1)),
        "labels": np.cumprod(rng.random((B, T)) < 0.6, axis=1).astype(float),
        "weights": rng.integers(0, 3, (B, T)) * rng.random((B, T)) if draw(st.booleans()) else np.ones((B, T)),
        "task_weights": rng.choice([0.0, 0.5, 2.0], T) if draw(st.booleans()) else np.ones(T),
    }


def run(loss, case):
    logits = np.stack([chains.marginal_logits(row) for row in case["conditional"]])
    weights = None if (case["weights"] == 1).all() else torch.tensor(case["weights"])
    further = {"conditional_logits": torch.tensor(case["conditional"]), READ[type(loss)]: torch.tensor(case["read"])}
    return loss.double()(torch.tensor(logits), torch.tensor(case["labels"]), weights, **further).item()


def made(make, case, **arguments):
    task_weights = case["task_weights"]
    given_weights = None if (task_weights == 1).all() else task_weights.tolist()
    return make(chain(len(task_weights)), **arguments, task_weights=given_weights)


@few_examples
@given(cases(), st.floats(0, 2), st.floats(0, 2), st.floats(0, 2), st.sampled_from([1e-3, 0.3]))
def test_dcmts_objective_equals_the_oracle(case, counterfactual_weight, global_weight, prior_weight, min_propensity):
    arguments = {
        "counterfactual_weight": counterfactual_weight,
        "global_weight": global_weight,
        "prior_weight": prior_weight,
        "min_propensity": min_propensity,
    }
    names = {"counterfactual" if name == "read" else name: value for name, value in case.items()}
    expected = chains.dcmt_objective(**names, **arguments)
    assert run(made(DCMTLoss, case, **arguments), case) == pytest.approx(expected, rel=1e-9)


@few_examples
@given(cases(), st.floats(0, 2), st.floats(0, 2), st.floats(0, 2), st.sampled_from([1e-3, 0.3]), st.booleans())
def test_ddpos_objective_equals_the_oracle(
    case, conversion_weight, counterfactual_weight, global_weight, min_propensity, soft_labels
):
    arguments = {
        "conversion_weight": conversion_weight,
        "counterfactual_weight": counterfactual_weight,
        "global_weight": global_weight,
        "min_propensity": min_propensity,
        "soft_labels": soft_labels,
    }
    names = {"conversion" if name == "read" else name: value for name, value in case.items()}
    expected = chains.ddpo_objective(**names, **arguments)
    assert run(made(DDPOLoss, case, **arguments), case) == pytest.approx(expected, rel=1e-9)


class Enumerated:
    """``X`` values of x and all outcomes that each of ``T`` steps would have if the step before had happened."""

    def __init__(self, seed, X=3, T=3):
        rng = np.random.default_rng(seed)
        mass_x, self.true = rng.dirichlet(np.ones(X)), rng.uniform(0.05, 0.95, (X, T))
        rows = list(itertools.product(range(X), *[(0, 1)] * T))
        self.x, outcomes = np.array([row[0] for row in rows]), np.array([row[1:] for row in rows], dtype=float)
        mass = mass_x[self.x] * np.where(outcomes == 1, self.true[self.x], 1 - self.true[self.x]).prod(1)
        self.labels, self.T = np.cumprod(outcomes, axis=1), T
        self.weights = np.repeat(mass[:, None] * len(rows), T, axis=1)
        self.predicted = rng.uniform(0.05, 0.95, (X, T))
        q = self.predicted[self.x, 1:]
        self.ideal = (mass[:, None] * -np.where(outcomes[:, 1:] == 1, np.log(q), np.log(1 - q))).sum()
        self.mass = mass

    def added(self, loss_class, read, propensities=None, **arguments):
        """What the estimate of the entire space's error adds to the loss, [x, E] of ``read`` and ``propensities``."""
        marginal = np.cumprod(self.true, axis=1)
        marginal = marginal if propensities is None else propensities
        further = {
            "conditional_logits": self._logits(self.predicted),
            READ[loss_class]: self._logits(read),
        }
        values = []
        for weight in (1.0, 0.0):
            loss = loss_class(chain(self.T), counterfactual_weight=weight, min_propensity=1e-9, **arguments)
            rows = (torch.tensor(each) for each in (self.labels, self.weights))
            values.append(loss(self._logits(marginal), *rows, **further).item())
        return values[0] - values[1]

    def _logits(self, p):
        return torch.tensor(np.log(p / (1 - p))[self.x])


@few_examples
@given(seeds, st.integers(1, 4), st.integers(2, 4))
def test_with_true_propensities_dcmts_first_term_is_unbiased_and_its_second_has_one_label(seed, X, T):
    funnel = Enumerated(seed, X, T)
    opposite = np.random.default_rng(seed).uniform(0.05, 0.95, (X, T - 1))
    found = funnel.added(DCMTLoss, opposite, prior_weight=0.0)
    of_ones = (funnel.mass[:, None] * -np.log(opposite)[funnel.x]).sum()
    assert found == pytest.approx(funnel.ideal + of_ones, rel=1e-9)
    gap = (funnel.mass[:, None] * np.abs(1 - funnel.predicted[:, 1:] - opposite)[funnel.x]).sum()
    assert funnel.added(DCMTLoss, opposite, prior_weight=2.0) - found == pytest.approx(2 * gap, rel=1e-7)


@few_examples
@given(seeds, st.integers(1, 4), st.integers(2, 4))
def test_with_both_propensities_true_ddpos_direct_loss_is_twice_the_entire_spaces(seed, X, T):
    funnel = Enumerated(seed, X, T)
    assert funnel.added(DDPOLoss, funnel.true[:, 1:]) == pytest.approx(2 * funnel.ideal, rel=1e-9)


def test_other_estimates_are_biased():
    """With wrong click propensities, with a wrong conversion propensity, and with the paper's soft labels."""
    funnel = Enumerated(seed=0)
    true, wrong = funnel.true[:, 1:], 1 - funnel.true[:, 1:]
    clicks = np.full_like(funnel.true, 0.4)
    for read, propensities, soft_labels in ((true, clicks, False), (wrong, None, False), (true, None, True)):
        found = funnel.added(DDPOLoss, read, propensities, soft_labels=soft_labels)
        assert abs(found - 2 * funnel.ideal) > 0.08
    opposite = np.full_like(true, 1 - 1e-12)
    assert abs(funnel.added(DCMTLoss, opposite, clicks, prior_weight=0.0) - funnel.ideal) > 0.1


CLICK, BUY = np.array([0.5, 0.05]), np.array([0.3, 0.02])  # of two x, as frequent as each other


def one_conversion_rate(make, read, **arguments):
    """P(buy | click) where a model must give both x the same, but knows P(click | x)."""
    loss = make(chain(2), global_weight=0.0, min_propensity=1e-6, **arguments)
    labels = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]).double().repeat(2, 1)
    mass = np.stack([1 - CLICK, CLICK * (1 - BUY), CLICK * BUY], axis=1).flatten() / 2
    weights = torch.tensor(6 * mass)[:, None].expand(6, 2)
    clicks = torch.tensor(CLICK).logit().repeat_interleave(3)
    read = torch.tensor(read).double().repeat_interleave(3)[:, None]

    def gradient(logit):
        leaf = torch.tensor(logit, dtype=torch.float64, requires_grad=True)
        both = torch.stack([clicks, leaf.expand(6)], dim=1)
        value = loss(both, labels, weights, conditional_logits=both, **{READ[make]: read})
        return torch.autograd.grad(value, leaf)[0].item()

    return 1 / (1 + np.exp(-scipy.optimize.brentq(gradient, -10, 10, xtol=1e-13)))


def test_a_model_that_cannot_tell_rows_apart_finds_the_mean_over_all_rows():
    """Where the clicked rows alone give .27: this is what entire-space losses are for."""
    everywhere, where_clicked = BUY.mean(), (CLICK * BUY).sum() / CLICK.sum()
    assert (everywhere, where_clicked) == pytest.approx((0.16, 0.2745), abs=1e-4)
    assert one_conversion_rate(DCMTLoss, [40.0, 40.0], prior_weight=0.0) == pytest.approx(everywhere, rel=1e-6)
    assert one_conversion_rate(DCMTLoss, [40.0, 40.0]) == pytest.approx(everywhere, rel=1e-3)
    true = np.log(BUY / (1 - BUY)).tolist()
    assert one_conversion_rate(DDPOLoss, true) == pytest.approx(everywhere, rel=1e-6)
    as_blind = [float(np.log(where_clicked / (1 - where_clicked)))] * 2
    halfway = (everywhere + where_clicked) / 2
    assert one_conversion_rate(DDPOLoss, as_blind) == pytest.approx(halfway, rel=1e-6)
    assert one_conversion_rate(DDPOLoss, true, soft_labels=True) > everywhere + 0.04


STEPS = {make: ("conditional_logits", read) for make, read in READ.items()}


@pytest.mark.parametrize(("click", "clicked"), [(0.1, 0.0964), (0.01, 0.0096)])
def test_soft_labels_are_biased_by_what_the_docstring_says(click, clicked):
    found, bought, _ = at_rest("ddpo", STEPS[DDPOLoss], click, 0.1, soft_labels=True)
    assert (found, bought) == pytest.approx((clicked, 0.1445), rel=0.003)


@pytest.mark.parametrize(("prior_weight", "comes_out"), [(1e-3, 0.0999), (0.1, 0.092)])
@pytest.mark.parametrize("click", [0.1, 0.01])
def test_the_counterfactual_prior_is_biased_by_what_the_docstring_says(click, prior_weight, comes_out):
    _, bought = at_rest("dcmt", STEPS[DCMTLoss], click, 0.1, prior_weight=prior_weight)
    assert bought == pytest.approx(comes_out, abs=0.0005 if prior_weight > 0.01 else 0.00005)


@both
def test_extreme_logits_masked_labels_and_empty_batches_stay_finite(make):
    extreme = torch.tensor([[200.0, -200.0], [-200.0, 200.0], [200.0, 200.0]])
    leaves = [extreme.clone().requires_grad_(), extreme.clone().requires_grad_(), extreme[:, 1:].clone()]
    leaves[2].requires_grad_()
    labels = torch.tensor([[0.0, torch.nan], [1.0, 1.0], [torch.nan, 0.0]])
    weights = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    loss = make(chain(2))
    value = loss(leaves[0], labels, weights, **dict(zip(STEPS[make], leaves[1:], strict=True)))
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value, leaves))
    empty = torch.empty(0, 2)
    assert loss(empty, empty, **dict(zip(STEPS[make], (empty, empty[:, 1:]), strict=True))) == 0


@pytest.mark.parametrize(
    ("make", "arguments", "sentence"),
    [
        (DCMTLoss, {"prior_weight": -1.0}, r"`prior_weight` \(=-1.0\) must be at least 0"),
        (DCMTLoss, {"min_propensity": 0.0}, r"`min_propensity` \(=0.0\) must be above 0 and at most 1"),
        (DDPOLoss, {"conversion_weight": -1.0}, r"`conversion_weight` \(=-1.0\) must be at least 0"),
        (DDPOLoss, {"global_weight": -1.0}, r"`global_weight` \(=-1.0\) must be at least 0"),
    ],
)
def test_wrong_arguments_raise(make, arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        make(chain(2), **arguments)
