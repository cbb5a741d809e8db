"""Theorems 2.1, TAFE eq. (10)-(12), and 3.1, TAFE eq. (26)-(28), by exact enumeration; the losses held to them.

X takes a few values and (Y, Z) is (0, 0), (1, 0) or (1, 1): in a funnel P(Z = 1, Y = 0) = 0. Both theorems are one
identity about a target S, with S = Z in 2.1 and S = Y - Z in 3.1::

    E_D[L(x, S)] = E_C[P(Y = 1) / P(Y = 1 | x, S) * L(x, S)],    C is D given Y = 1.

Probabilities are fractions and a loss value is the fraction of its float, so both sides must be *equal*.
(The other term of eq. 10, E[L(f_Y(X), Y)], is the same on both sides.)

The theorems do not state what they need: P(Y = 1 | x, s) > 0 for every (x, s) that can occur. S = 1 implies
Y = 1, so the condition is only about S = 0, and differs:

- 2.1: wherever Y = Z = 0 can occur, so can a click without conversion, P(Y = 1, Z = 0 | x) > 0;
- 3.1: wherever Y = Z = 0 can occur, so can a conversion, P(Y = 1, Z = 1 | x) > 0.

Where it fails, the local side lacks exactly the mass that the local space never shows.
"""
# ruff: noqa: N806  (the paper's letters)

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from tests.losses.strategies import few_examples, seeds
from tests.oracles import losses as oracle
from tests.oracles.funnels import (
    TARGETS,
    Cell,
    Distribution,
    Enumeration,
    Loss,
    Target,
    clicked_share,
    distribution,
    entire_space_loss,
    enumeration,
    local_space_loss,
    unseen,
)
from torchrec_mtl.losses import difference_propensity, local_space_bce, local_space_dependence, step_propensity

both_theorems = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Distribution, Loss]:
    """Any funnel over 1 to 4 values of x, any f, and a loss: BCE, squared error or any table."""
    count = st.integers(0, 40)
    counts = draw(st.lists(st.tuples(count, count, count), min_size=1, max_size=4))
    assume(any(row[1] + row[2] for row in counts))
    kind, loss = draw(st.sampled_from(["bce", "mse", "table"])), {}
    for x in range(len(counts)):
        f = draw(st.floats(0.001, 0.999) if kind == "bce" else st.floats(-2, 2))
        for s in (0, 1):
            if kind == "table":
                value = draw(st.floats(-100, 100))
            else:
                value = oracle.binary_cross_entropy(f, s) if kind == "bce" else (s - f) ** 2
            loss[x, s] = Fraction(value)
    return distribution(counts), loss


@both_theorems
@few_examples
@given(cases())
def test_weighted_local_loss_equals_the_entire_space_loss(target: Target, case: tuple[Distribution, Loss]) -> None:
    P, loss = case
    assume(not unseen(P, target))
    weighted = local_space_loss(P, target, loss, lambda cell: clicked_share(P, target, cell))
    assert weighted == entire_space_loss(P, target, loss)


@both_theorems
@few_examples
@given(cases())
def test_without_support_exactly_the_unseen_mass_is_missing(target: Target, case: tuple[Distribution, Loss]) -> None:
    P, loss = case
    missing = sum((P[cell] * loss[cell.x, target(cell)] for cell in unseen(P, target)), Fraction(0))
    weighted = local_space_loss(P, target, loss, lambda cell: clicked_share(P, target, cell))
    assert entire_space_loss(P, target, loss) - weighted == missing


@pytest.mark.parametrize(("theorem", "counts"), [("2.1", (5, 0, 3)), ("3.1", (5, 3, 0))])
def test_each_theorem_needs_a_different_support(theorem: str, counts: tuple[int, int, int]) -> None:
    """Rows (0, 0) are unseen if their x never shows the outcome that represents them."""
    P = distribution([(4, 2, 1), counts])
    assert unseen(P, TARGETS[theorem]) == [Cell(1, 0, 0)]
    assert not any(unseen(P, target) for name, target in TARGETS.items() if name != theorem)


SKEWED = distribution([(90, 8, 2), (40, 30, 30)])
LOSS: Loss = {(x, s): Fraction(oracle.binary_cross_entropy(0.3, s)) for x in (0, 1) for s in (0, 1)}


@both_theorems
@pytest.mark.parametrize("share", ["unweighted", "P(Y = 1 | x)", "the other theorem's"])
def test_any_other_weight_is_biased(target: Target, share: str) -> None:
    """No weight, the click propensity of IPS estimators, and the weight of the other theorem."""
    other = next(t for t in TARGETS.values() if t is not target)
    shares: dict[str, Callable[[Cell], Fraction] | None] = {
        "unweighted": None,
        "P(Y = 1 | x)": lambda cell: clicked_share(SKEWED, lambda _: 0, cell),
        "the other theorem's": lambda cell: clicked_share(SKEWED, other, cell),
    }
    biased = local_space_loss(SKEWED, target, LOSS, shares[share])
    assert abs(biased - entire_space_loss(SKEWED, target, LOSS)) > 0.1


def in_torch(*arrays: np.ndarray) -> list[Tensor]:
    return [torch.tensor(array, dtype=torch.float64) for array in arrays]


@st.composite
def batches(draw: st.DrawFn) -> Enumeration:
    """1 to 4 values of x, a funnel of 2 to 4 tasks in which every depth is possible: the support that both need."""
    depths = st.integers(3, 5).flatmap(lambda n: st.lists(st.tuples(*[st.integers(1, 40)] * n), min_size=1, max_size=4))
    return enumeration(np.array(draw(depths)))


@few_examples
@given(batches(), seeds)
def test_local_space_bce_equals_the_entire_space_bce(batch: Enumeration, seed: int) -> None:
    """In value and gradient, for a model whose predictions are all wrong."""
    rng = np.random.default_rng(seed)
    per_x = torch.tensor(rng.normal(size=batch.marginals.shape) * 2, requires_grad=True)
    logits = per_x[torch.tensor(batch.x)]
    labels, weights, propensities = in_torch(batch.labels, batch.weights, batch.propensities)
    local = local_space_bce(logits, labels, propensities[:, 1:], oracle.chain(labels.shape[1]), weights)
    entire = oracle.cross_entropy(logits.sigmoid().detach().numpy(), batch.labels, batch.weights)
    assert local.item() == pytest.approx(entire, rel=1e-9)
    gradient = weights * (logits.sigmoid() - labels) / len(labels)
    expected = torch.zeros_like(per_x).index_add(0, torch.tensor(batch.x), gradient)
    torch.testing.assert_close(torch.autograd.grad(local, per_x)[0], expected, rtol=1e-9, atol=1e-12)


def test_without_propensities_local_space_bce_is_biased() -> None:
    batch = enumeration(np.array([[90, 7, 2, 1], [40, 20, 20, 20]]))
    probabilities = np.full(batch.labels.shape, 0.3)
    p, labels, weights = in_torch(probabilities, batch.labels, batch.weights)
    local = local_space_bce(p.logit(), labels, torch.ones_like(p[:, 1:]), oracle.chain(p.shape[1]), weights).item()
    assert abs(local - oracle.cross_entropy(probabilities, batch.labels, batch.weights)) > 0.1


@few_examples
@given(batches())
def test_step_propensity_of_true_marginals_is_the_true_conditional(batch: Enumeration) -> None:
    marginals, labels = in_torch(batch.marginals[batch.x], batch.labels)
    actual = step_propensity(marginals.logit(), labels, oracle.chain(labels.shape[1]), min_propensity=1e-6).numpy()
    np.testing.assert_allclose(actual, batch.propensities[:, 1:], rtol=1e-9)


@few_examples
@given(batches(), seeds)
def test_local_space_dependence_equals_that_of_the_entire_space(batch: Enumeration, seed: int) -> None:
    """In value and gradient, for a model whose predictions are all wrong."""
    rng = np.random.default_rng(seed)
    edges = oracle.chain(batch.labels.shape[1])
    per_x = torch.tensor(rng.normal(size=batch.marginals.shape) * 2, requires_grad=True)
    logits = per_x[torch.tensor(batch.x)]
    labels, weights, propensities = in_torch(batch.labels, batch.weights, batch.of_differences)
    local = local_space_dependence(logits, labels, propensities[:, 1:], edges, weights)
    p = logits.sigmoid()
    assert local.item() == pytest.approx(oracle.dependence(p.detach().numpy(), batch.labels, batch.weights), rel=1e-9)
    entire = (weights[:, 1:] * ((p - labels)[:, :-1] - (p - labels)[:, 1:]).square()).sum() / len(labels)
    expected = torch.autograd.grad(entire, per_x, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(local, per_x)[0], expected, rtol=1e-9, atol=1e-12)


def test_without_propensities_local_space_dependence_is_biased() -> None:
    batch = enumeration(np.array([[90, 7, 2, 1], [40, 20, 20, 20]]))
    probabilities = np.array([[0.6, 0.3, 0.1]] * len(batch.labels))
    p, labels, weights = in_torch(probabilities, batch.labels, batch.weights)
    entire = oracle.dependence(probabilities, batch.labels, batch.weights)
    for wrong in (np.ones_like(batch.propensities), batch.propensities):  # none; the other theorem's
        (shares,) = in_torch(wrong[:, 1:])
        assert abs(local_space_dependence(p.logit(), labels, shares, [(0, 1), (1, 2)], weights).item() - entire) > 0.05


@few_examples
@given(batches())
def test_difference_propensity_of_true_marginals_is_the_true_conditional(batch: Enumeration) -> None:
    marginals, labels = in_torch(batch.marginals[batch.x], batch.labels)
    edges = oracle.chain(labels.shape[1])
    actual = difference_propensity(marginals.logit(), labels, edges, min_propensity=1e-6).numpy()
    np.testing.assert_allclose(actual, batch.of_differences[:, 1:], rtol=1e-9)
