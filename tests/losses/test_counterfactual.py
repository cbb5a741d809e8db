"""ESCM2's risks by exact enumeration, and its objective against loops in float64.

A row of an enumerated funnel is an x and the outcome that each step would have if the step before had happened. The
outcomes are independent given x. The estimators see the outcome of a step only where the step before happened.
"""
# ruff: noqa: N803, N806  (the papers' letters)

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.losses.strategies import few_examples, seeds
from tests.oracles import chains
from tests.support import chain
from torchrec_mtl.errors import InputError
from torchrec_mtl.losses import CounterfactualLoss, CrossEntropyLoss, dr_risk, imputation_loss, ips_risk


class Funnel:
    """``X`` values of x, ``T`` steps, and a model whose predictions are all wrong.

    All tensors are ``[B, T - 1]``, for the steps that have a step before them. Weights are probabilities times B.
    """

    def __init__(self, seed, X=3, T=3):
        rng = np.random.default_rng(seed)
        P_x, conditional = rng.dirichlet(np.ones(X)), rng.uniform(0.02, 0.98, (X, T))
        rows = list(itertools.product(range(X), *[(0, 1)] * T))
        x, outcomes = np.array([row[0] for row in rows]), np.array([row[1:] for row in rows], dtype=float)
        mass = P_x[x] * np.where(outcomes == 1, conditional[x], 1 - conditional[x]).prod(1)
        assert mass.sum() == pytest.approx(1)
        seen = np.cumprod(outcomes, axis=1)  # the labels

        predictions = rng.uniform(0.02, 0.98, (X, T))
        error_if = -np.log1p(-predictions), -np.log(predictions)  # if the outcome is 0, if it is 1
        errors = np.where(outcomes == 1, error_if[1][x], error_if[0][x])[:, 1:]
        expected_errors = (conditional * error_if[1] + (1 - conditional) * error_if[0])[x, 1:]
        self.entire_space_risk = (mass[:, None] * errors).sum()  # no log shows it

        def tensor(array):
            return torch.tensor(array, dtype=torch.float64)

        self.errors = tensor(np.where(seen[:, 1:] == 1, error_if[1][x, 1:], error_if[0][x, 1:]))
        self.observed = tensor(seen[:, :-1])
        self.weights = tensor(np.repeat(mass[:, None] * len(rows), T - 1, axis=1))
        self.true_propensities = tensor(np.cumprod(conditional, axis=1)[x, :-1])
        self.true_imputed = tensor(expected_errors)
        self.wrong_propensities = tensor(rng.uniform(0.05, 1, (X, T - 1))[x])
        self.wrong_imputed = tensor(rng.uniform(0, 3, (X, T - 1))[x])


@few_examples
@given(seeds, st.integers(1, 4), st.integers(2, 4))
def test_ips_is_unbiased_with_true_propensities(seed, X, T):
    funnel = Funnel(seed, X, T)
    risk = ips_risk(funnel.errors, funnel.observed, funnel.true_propensities, funnel.weights)
    assert risk.item() == pytest.approx(funnel.entire_space_risk, rel=1e-9)


@few_examples
@given(seeds, st.integers(1, 4), st.integers(2, 4), st.sampled_from(["propensities", "imputed"]))
def test_dr_is_unbiased_where_either_is_true(seed, X, T, right):
    funnel = Funnel(seed, X, T)
    propensities = funnel.true_propensities if right == "propensities" else funnel.wrong_propensities
    imputed = funnel.true_imputed if right == "imputed" else funnel.wrong_imputed
    risk = dr_risk(funnel.errors, imputed, funnel.observed, propensities, funnel.weights)
    assert risk.item() == pytest.approx(funnel.entire_space_risk, rel=1e-9)


def test_other_estimates_are_biased():
    """With wrong propensities, with both wrong, and with the mean error of the observed rows."""
    funnel = Funnel(seed=0)
    errors, observed, weights = funnel.errors, funnel.observed, funnel.weights
    for risk in (
        ips_risk(errors, observed, funnel.wrong_propensities, weights),
        dr_risk(errors, funnel.wrong_imputed, observed, funnel.wrong_propensities, weights),
        ips_risk(errors, observed, (observed * weights).mean(0).expand_as(errors), weights),
    ):
        assert abs(risk.item() - funnel.entire_space_risk) > 0.1


@few_examples
@given(seeds)
def test_the_imputation_loss_is_least_at_the_true_imputed_errors(seed):
    """Among imputed errors that depend on x alone, whatever the propensities."""
    funnel = Funnel(seed)
    seen = (funnel.observed, funnel.wrong_propensities, funnel.weights)
    imputed = funnel.true_imputed.clone().requires_grad_()
    gradient = torch.autograd.grad(imputation_loss(funnel.errors, imputed, *seen), imputed)[0]
    per_x = gradient.view(3, -1, 2).sum(1)  # rows are in the order of x
    torch.testing.assert_close(per_x, torch.zeros_like(per_x))
    off = imputation_loss(funnel.errors, funnel.wrong_imputed, *seen)
    assert off > imputation_loss(funnel.errors, funnel.true_imputed, *seen)


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(seeds))
    B, T = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    return {
        "conditional": rng.normal(scale=2, size=(B, T)),
        "labels": np.cumprod(rng.random((B, T)) < 0.6, axis=1).astype(float),
        "weights": rng.integers(0, 3, (B, T)) * rng.random((B, T)) if draw(st.booleans()) else np.ones((B, T)),
        "task_weights": rng.choice([0.0, 0.5, 2.0], T) if draw(st.booleans()) else np.ones(T),
        "imputed": rng.uniform(0, 3, (B, T - 1)) if draw(st.booleans()) else None,
    }


def run(loss, case, **leaves):
    conditional = torch.tensor(case["conditional"])
    arguments = {
        "logits": torch.tensor(np.stack([chains.marginal_logits(row) for row in case["conditional"]])),
        "conditional_logits": conditional,
        "labels": torch.tensor(case["labels"]),
        "weights": None if (case["weights"] == 1).all() else torch.tensor(case["weights"]),
        "imputed_errors": None if case["imputed"] is None else torch.tensor(case["imputed"]),
        **leaves,
    }
    return loss.double()(**arguments)


@few_examples
@given(cases(), st.floats(0, 2), st.floats(0, 2), st.sampled_from([1e-3, 0.3]))
def test_the_objective_equals_the_oracle(case, counterfactual_weight, global_weight, min_propensity):
    task_weights = case["task_weights"]
    given_weights = None if (task_weights == 1).all() else task_weights.tolist()
    arguments = {
        "counterfactual_weight": counterfactual_weight,
        "global_weight": global_weight,
        "min_propensity": min_propensity,
    }
    loss = CounterfactualLoss(chain(len(task_weights)), **arguments, task_weights=given_weights)
    actual = run(loss, case)
    assert actual.item() == pytest.approx(chains.counterfactual(**case, **arguments), rel=1e-9)


@pytest.mark.parametrize("imputed", [None, np.full((5, 2), 0.7)], ids=["ips", "dr"])
def test_no_gradient_flows_through_propensities(imputed):
    """The gradient with respect to the marginal logits comes from the cross entropies alone."""
    rng = np.random.default_rng(0)
    labels = np.ones((5, 3))
    case = {"conditional": rng.normal(size=(5, 3)), "labels": labels, "weights": np.ones(1), "imputed": imputed}
    logits = torch.tensor(rng.normal(size=(5, 3)), requires_grad=True)
    loss = CounterfactualLoss(chain(3), global_weight=0.5)
    gradient = torch.autograd.grad(run(loss, case, logits=logits), logits)[0]
    alone = CrossEntropyLoss(chain(3), task_weights=[1.0, 0.5, 0.5]).double()(logits, torch.tensor(labels))
    torch.testing.assert_close(gradient, torch.autograd.grad(alone, logits)[0])


@pytest.mark.parametrize("imputed", [None, torch.tensor([[0.1], [0.5], [2.0]])], ids=["ips", "dr"])
def test_extreme_logits_masked_labels_and_empty_batches_stay_finite(imputed):
    extreme = torch.tensor([[200.0, -200.0], [-200.0, 200.0], [200.0, 200.0]])
    logits, conditional = extreme.clone().requires_grad_(), extreme.clone().requires_grad_()
    labels = torch.tensor([[0.0, torch.nan], [1.0, 1.0], [torch.nan, 0.0]])
    weights = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    loss = CounterfactualLoss(chain(2))
    value = loss(logits, labels, weights, conditional_logits=conditional, imputed_errors=imputed)
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()
    assert conditional.grad.isfinite().all()
    empty = torch.empty(0, 2)
    none = None if imputed is None else torch.empty(0, 1)
    assert loss(empty, empty, conditional_logits=empty, imputed_errors=none) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"min_propensity": 0.0}, r"`min_propensity` \(=0.0\) must be above 0 and at most 1"),
        ({"global_weight": -1.0}, r"`global_weight` \(=-1.0\) must be at least 0"),
        ({"counterfactual_weight": -0.5}, r"`counterfactual_weight` \(=-0.5\) must be at least 0"),
        ({"task_weights": [1.0, -1.0]}, r"`task_weights` \(=-1.0\) must be at least 0"),
    ],
)
def test_wrong_arguments_raise(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        CounterfactualLoss(chain(2), **arguments)
