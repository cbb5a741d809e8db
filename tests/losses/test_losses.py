"""The losses against the papers' equations, by loops in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import bpcm, common, losses, tafe
from torchrec_mtl import Task, TaskChain, TaskForest
from torchrec_mtl.errors import InputError
from torchrec_mtl.losses import CalibratedLoss, CrossEntropyLoss, DependenceLoss, LocalSpaceLoss


@st.composite
def batches(draw, min_tasks=1):
    """Logits, labels of a true funnel, weights with zeros: [B, T]."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (draw(st.integers(1, 6)), draw(st.integers(min_tasks, 4)))
    labels = np.cumprod(rng.random(shape) < 0.6, axis=1).astype(float)
    weights = rng.integers(0, 3, shape) * rng.random(shape) if draw(st.booleans()) else None
    return rng.normal(scale=3, size=shape), labels, weights


LOSSES = [CrossEntropyLoss, CalibratedLoss, DependenceLoss, LocalSpaceLoss]


def chain(num_tasks):
    return TaskChain([f"step_{t}" for t in range(num_tasks)])


def run(loss, batch):
    return loss.double()(*(None if x is None else torch.tensor(x) for x in batch)).item()


@given(batches(), st.booleans())
def test_cross_entropy(batch, weighted):
    logits, labels, weights = batch
    task_weights = [0.5, 1.0, 2.0, 0.0][: logits.shape[1]] if weighted else None
    expected = losses.cross_entropy(common.sigmoid(logits), labels, weights, task_weights)
    assert run(CrossEntropyLoss(chain(logits.shape[1]), task_weights=task_weights), batch) == pytest.approx(
        expected, rel=1e-10
    )


@given(batches(), st.floats(0, 2))
def test_calibrated_loss_is_bpcm_equation_13(batch, alpha):
    logits, labels, weights = batch
    expected = bpcm.objective(common.sigmoid(logits), labels, alpha, weights)
    assert run(CalibratedLoss(chain(logits.shape[1]), alpha=alpha), batch) == pytest.approx(expected, rel=1e-10)


@given(batches(), st.floats(0, 2))
def test_dependence_loss_is_tafe_equation_25(batch, dependence_weight):
    logits, labels, weights = batch
    task_weights = [0.5, 1.0, 2.0, 0.0][: logits.shape[1]]
    expected = tafe.objective(common.sigmoid(logits), labels, task_weights, dependence_weight, weights)
    loss = DependenceLoss(chain(logits.shape[1]), dependence_weight=dependence_weight, task_weights=task_weights)
    assert run(loss, batch) == pytest.approx(expected, rel=1e-10)


@given(batches())
def test_local_space_loss_is_tafe_equation_10(batch):
    logits, labels, weights = batch
    propensities = losses.step_propensity(logits, labels, min_propensity=0.05)
    expected = losses.local_space(common.sigmoid(logits), labels, propensities, weights)
    assert run(LocalSpaceLoss(chain(logits.shape[1]), min_propensity=0.05), batch) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("loss_class", LOSSES)
def test_extreme_logits_and_empty_batches_stay_finite(loss_class):
    loss = loss_class(chain(2))
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0], [200.0, 200.0]], requires_grad=True)
    value = loss(logits, torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0]]))
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()
    assert loss(torch.empty(0, 2), torch.empty(0, 2)) == 0


@pytest.mark.parametrize("loss_class", LOSSES)
def test_a_masked_label_may_be_nan(loss_class):
    """It changes neither the value nor the gradient."""
    loss = loss_class(chain(3))
    weights = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    labels = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    outcomes = []
    for masked in (labels, torch.where(weights == 0, torch.nan, labels)):
        logits = torch.linspace(-2, 2, 9).view(3, 3).requires_grad_()
        value = loss(logits, masked, weights)
        outcomes.append((value, *torch.autograd.grad(value, logits)))
    torch.testing.assert_close(outcomes[1], outcomes[0])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: CrossEntropyLoss(chain(2), task_weights=[1.0, -1.0]), r"`task_weights` \(=-1.0\) must be at least 0"),
        (lambda: CrossEntropyLoss(chain(3), task_weights=[1.0]), r"`task_weights` \(=\[1.0\]\) must be one a task"),
        (lambda: CalibratedLoss(chain(2), alpha=float("nan")), r"`alpha` \(=nan\) must be at least 0"),
        (lambda: DependenceLoss(chain(2), dependence_weight=-1.0), r"`dependence_weight` \(=-1.0\) must be at least 0"),
        (lambda: LocalSpaceLoss(chain(2), min_propensity=0.0), r"`min_propensity` \(=0.0\) must be above 0"),
    ],
)
def test_a_wrong_argument_is_told(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


@st.composite
def forests(draw):
    """Any forest of 2 to 5 tasks of which some need another."""
    parents = [draw(st.none() | st.integers(0, t - 1)) if t else None for t in range(draw(st.integers(2, 5)))]
    if not any(parent is not None for parent in parents):
        parents[-1] = 0
    return TaskForest(*(Task(f"t{t}", after=None if p is None else f"t{p}") for t, p in enumerate(parents)))


@given(forests(), st.integers(0, 2**32 - 1))
def test_terms_of_two_tasks_follow_the_edges(tasks, seed):
    rng = np.random.default_rng(seed)
    shape = (4, len(tasks))
    logits, labels, weights = rng.normal(size=shape), rng.integers(0, 2, shape), rng.integers(0, 3, shape)
    batch = (logits, labels.astype(float), weights.astype(float))
    p = common.sigmoid(logits)
    cross_entropy = losses.cross_entropy(p, labels, weights)
    calibrated = cross_entropy + 0.6 * losses.calibrator(p, weights, tasks.edges)
    assert run(CalibratedLoss(tasks), batch) == pytest.approx(calibrated, rel=1e-10)
    dependent = cross_entropy + losses.dependence(p, labels, weights, tasks.edges)
    assert run(DependenceLoss(tasks), batch) == pytest.approx(dependent, rel=1e-10)


@settings(max_examples=25)
@given(forests(), st.integers(0, 2**32 - 1))
def test_a_tree_is_its_paths(tasks, seed):
    """The local-space loss of a forest is, task by task, that of the chain of the task and the one that it needs."""
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(6, len(tasks))), rng.integers(0, 2, (6, len(tasks))).astype(float)
    weights = rng.integers(0, 3, labels.shape).astype(float)
    expected = 0.0
    for task, parent in enumerate(tasks.parents):
        columns = [task] if parent is None else [parent, task]
        only_last = weights[:, columns].copy()
        own = [x[:, columns] for x in (logits, labels)]
        whole = run(LocalSpaceLoss(chain(len(columns))), (*own, only_last))
        first = 0.0 if parent is None else run(LocalSpaceLoss(chain(1)), tuple(x[:, :1] for x in (*own, only_last)))
        expected += whole - first
    assert run(LocalSpaceLoss(tasks), (logits, labels, weights)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("loss_class", [CalibratedLoss, DependenceLoss, LocalSpaceLoss])
def test_tasks_that_need_nothing_are_refused(loss_class):
    apart = TaskForest(Task("income"), Task("never_married"))
    rule = "must have tasks of which some need another"
    with pytest.raises(InputError, match=rf"{loss_class.__name__} {rule} \(`after`\), not income, never_married"):
        loss_class(apart)
