"""The terms of the losses, against loops in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.losses.strategies import batches, few_examples, forest_batch, forests, seeds
from tests.oracles import common
from tests.oracles import losses as oracle
from torchrec_mtl import losses
from torchrec_mtl.losses import calibrator, cross_entropy, dependence


def tensors(*arrays):
    return [None if array is None else torch.tensor(array, dtype=torch.float64) for array in arrays]


@given(batches(), st.booleans())
def test_cross_entropy_equals_the_oracle(batch, weighted):
    logits, labels, weights = batch
    task_weights = [0.5, 1.0, 2.0, 0.0][: logits.shape[1]] if weighted else None
    expected = oracle.cross_entropy(common.sigmoid(logits), labels, weights, task_weights)
    assert cross_entropy(*tensors(*batch, task_weights)).item() == pytest.approx(expected, rel=1e-10)


@given(forests(), seeds)
def test_calibrator_and_dependence_follow_the_edges(tasks, seed):
    logits, labels, weights = forest_batch(tasks, seed)
    x, y, w = tensors(logits, labels, weights)
    p, edges = common.sigmoid(logits), tasks.edges
    actual = [calibrator(x, edges), calibrator(x, edges, w), dependence(x, y, edges), dependence(x, y, edges, w)]
    expected = [oracle.calibrator(p, None, edges), oracle.calibrator(p, weights, edges)]
    expected += [oracle.dependence(p, labels, None, edges), oracle.dependence(p, labels, weights, edges)]
    assert [value.item() for value in actual] == pytest.approx(expected, rel=1e-10)


LOCAL_TERMS = {"local_space_bce": oracle.local_space, "local_space_dependence": oracle.local_space_dependence}
PROPENSITIES = ("step_propensity", "difference_propensity")


@pytest.mark.parametrize("name", LOCAL_TERMS)
@given(batches(), seeds)
def test_terms_of_the_local_space_equal_the_oracle_with_any_weights(name, batch, seed):
    logits, labels, _ = batch
    rng = np.random.default_rng(seed)
    weights, propensities = rng.integers(0, 3, size=labels.shape), rng.uniform(0.01, 1.0, size=labels.shape)
    arguments = (*tensors(logits, labels, propensities[:, 1:]), oracle.chain(labels.shape[1]))
    term = getattr(losses, name)
    actual = [term(*arguments).item(), term(*arguments, *tensors(weights)).item()]
    expected = [LOCAL_TERMS[name](common.sigmoid(logits), labels, propensities, w) for w in (None, weights)]
    assert actual == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", PROPENSITIES)
@few_examples
@given(st.integers(1, 5), seeds, st.sampled_from([1e-2, 0.2]))
def test_propensities_equal_the_oracle_even_if_labels_rise(name, num_tasks, seed, floor):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(16, num_tasks)) * 4, rng.integers(0, 2, size=(16, num_tasks))
    actual = getattr(losses, name)(*tensors(logits, labels), oracle.chain(num_tasks), min_propensity=floor).numpy()
    np.testing.assert_allclose(actual, getattr(oracle, name)(logits, labels, floor)[:, 1:], rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "expected"), [(PROPENSITIES[0], [1e-3, 1, 1e-3, 1e-3]), (PROPENSITIES[1], [1, 0.5, 0.5, 1e-3])]
)
def test_propensities_survive_saturated_logits(name, expected):
    logits = torch.tensor([[50.0, 50.0], [50.0, -50.0], [-50.0, 50.0], [-50.0, -50.0]])
    assert getattr(losses, name)(logits, torch.zeros(4, 2), [(0, 1)])[:, 0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", PROPENSITIES)
def test_no_gradient_flows_through_propensities(name):
    logits = torch.zeros(2, 3, requires_grad=True)
    assert not getattr(losses, name)(logits, torch.zeros(2, 3), [(0, 1), (1, 2)]).requires_grad
