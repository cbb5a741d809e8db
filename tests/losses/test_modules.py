"""The losses, against the papers' equations as loops in float64."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.losses.strategies import batches, forest_batch, forests, seeds
from tests.oracles import bpcm, common, losses, tafe
from tests.support import chain
from torchrec_mtl import Task, TaskForest
from torchrec_mtl.errors import InputError
from torchrec_mtl.losses import CalibratedLoss, CrossEntropyLoss, DependenceLoss, ExitDepthLoss, LocalSpaceLoss
from torchrec_mtl.modules import MarginalFromConditional

LOCAL_WITH_DEPENDENCE = partial(LocalSpaceLoss, dependence_weight=1.0)
LOSSES = [CrossEntropyLoss, CalibratedLoss, DependenceLoss, LocalSpaceLoss, LOCAL_WITH_DEPENDENCE]


def run(loss, batch):
    return loss.double()(*(None if x is None else torch.tensor(x) for x in batch)).item()


@given(batches(), st.booleans())
def test_cross_entropy_loss_matches_bpcm_equation_11(batch, weighted):
    logits, labels, weights = batch
    task_weights = [0.5, 1.0, 2.0, 0.0][: logits.shape[1]] if weighted else None
    expected = losses.cross_entropy(common.sigmoid(logits), labels, weights, task_weights)
    loss = CrossEntropyLoss(chain(logits.shape[1]), task_weights=task_weights)
    assert run(loss, batch) == pytest.approx(expected, rel=1e-10)


@given(batches(), st.floats(0, 2))
def test_calibrated_loss_matches_bpcm_equation_13(batch, alpha):
    logits, labels, weights = batch
    expected = bpcm.objective(common.sigmoid(logits), labels, alpha, weights)
    assert run(CalibratedLoss(chain(logits.shape[1]), alpha=alpha), batch) == pytest.approx(expected, rel=1e-10)


@given(batches(), st.floats(0, 2))
def test_dependence_loss_matches_tafe_equation_25(batch, dependence_weight):
    logits, labels, weights = batch
    task_weights = [0.5, 1.0, 2.0, 0.0][: logits.shape[1]]
    expected = tafe.objective(common.sigmoid(logits), labels, task_weights, dependence_weight, weights)
    loss = DependenceLoss(chain(logits.shape[1]), dependence_weight=dependence_weight, task_weights=task_weights)
    assert run(loss, batch) == pytest.approx(expected, rel=1e-10)


@given(batches(), st.floats(0, 2))
def test_exit_depth_loss_is_the_likelihood_of_the_depth(batch, depth_weight):
    """Of funnels, where a step that did not happen ends them."""
    conditional, labels, _ = batch
    labels = labels.cumprod(axis=1)
    marginal = MarginalFromConditional(chain(labels.shape[1]))(torch.tensor(conditional))
    loss = ExitDepthLoss(chain(labels.shape[1]), depth_weight=depth_weight)
    actual = loss(marginal, torch.tensor(labels), conditional_logits=torch.tensor(conditional))
    depth = losses.exit_depth(common.sigmoid(conditional), labels)
    entropy = losses.cross_entropy(marginal.sigmoid().numpy(), labels)
    assert actual.item() == pytest.approx(entropy + depth_weight * depth, rel=1e-6)


def test_exit_depth_of_a_tree_counts_a_task_where_the_one_before_happened():
    tree = TaskForest(Task("click"), Task("like", after="click"), Task("buy", after="click"))
    zero, labels = torch.zeros(2, 3), torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    value = ExitDepthLoss(tree)(zero, labels, conditional_logits=zero) - CrossEntropyLoss(tree)(zero, labels)
    torch.testing.assert_close(value, torch.tensor(4 / 2).mul(torch.tensor(2.0).log()))  # 3 conditionals and 1


@given(batches())
def test_local_space_loss_matches_tafe_equation_10(batch):
    logits, labels, weights = batch
    propensities = losses.step_propensity(logits, labels, min_propensity=0.05)
    expected = losses.local_space(common.sigmoid(logits), labels, propensities, weights)
    assert run(LocalSpaceLoss(chain(logits.shape[1]), min_propensity=0.05), batch) == pytest.approx(expected, rel=1e-9)


@given(batches(), st.floats(0, 2))
def test_local_space_loss_matches_tafe_equation_26(batch, dependence_weight):
    logits, labels, weights = batch
    propensities = losses.difference_propensity(logits, labels, min_propensity=0.05)
    dependence = losses.local_space_dependence(common.sigmoid(logits), labels, propensities, weights)
    tasks = chain(logits.shape[1])
    expected = run(LocalSpaceLoss(tasks, min_propensity=0.05), batch) + dependence_weight * dependence
    loss = LocalSpaceLoss(tasks, min_propensity=0.05, dependence_weight=dependence_weight)
    assert run(loss, batch) == pytest.approx(expected, rel=1e-9)


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
        (lambda: LocalSpaceLoss(chain(2), dependence_weight=-1.0), r"`dependence_weight` \(=-1.0\) must be at least 0"),
        (lambda: LocalSpaceLoss(chain(2), min_propensity=0.0), r"`min_propensity` \(=0.0\) must be above 0"),
    ],
)
def test_wrong_arguments_raise(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


@given(forests(), seeds)
def test_terms_of_two_tasks_follow_the_edges(tasks, seed):
    batch = logits, labels, weights = forest_batch(tasks, seed)
    p = common.sigmoid(logits)
    cross_entropy = losses.cross_entropy(p, labels, weights)
    calibrated = cross_entropy + 0.6 * losses.calibrator(p, weights, tasks.edges)
    assert run(CalibratedLoss(tasks), batch) == pytest.approx(calibrated, rel=1e-10)
    dependent = cross_entropy + losses.dependence(p, labels, weights, tasks.edges)
    assert run(DependenceLoss(tasks), batch) == pytest.approx(dependent, rel=1e-10)


@pytest.mark.parametrize("loss_class", [LocalSpaceLoss, LOCAL_WITH_DEPENDENCE])
@settings(max_examples=25)
@given(forests(), seeds)
def test_the_local_space_loss_of_a_forest_is_the_sum_over_its_edges(loss_class, tasks, seed):
    """Each task adds what it adds in the chain of itself and the task that it needs."""
    logits, labels, weights = forest_batch(tasks, seed, num_rows=6)
    expected = 0.0
    for task, parent in enumerate(tasks.parents):
        columns = [task] if parent is None else [parent, task]
        pair = [x[:, columns] for x in (logits, labels, weights)]
        whole = run(loss_class(chain(len(columns))), pair)
        first = 0.0 if parent is None else run(loss_class(chain(1)), [x[:, :1] for x in pair])
        expected += whole - first
    assert run(loss_class(tasks), (logits, labels, weights)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("loss_class", [CalibratedLoss, DependenceLoss, LocalSpaceLoss])
def test_tasks_that_need_nothing_raise(loss_class):
    apart = TaskForest(Task("income"), Task("never_married"))
    rule = "must have tasks of which some need another"
    with pytest.raises(InputError, match=rf"{loss_class.__name__} {rule} \(`after`\), not income, never_married"):
        loss_class(apart)
