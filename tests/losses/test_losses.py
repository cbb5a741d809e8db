"""The losses against the papers' equations, by loops in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles import bpcm, common, losses, tafe
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


def run(loss, batch):
    return loss.double()(*(None if x is None else torch.tensor(x) for x in batch)).item()


@given(batches(), st.booleans())
def test_cross_entropy(batch, weighted):
    logits, labels, weights = batch
    task_weights = [0.5, 1.0, 2.0, 0.0][: logits.shape[1]] if weighted else None
    expected = losses.cross_entropy(common.sigmoid(logits), labels, weights, task_weights)
    assert run(CrossEntropyLoss(task_weights), batch) == pytest.approx(expected, rel=1e-10)


@given(batches(), st.floats(0, 2))
def test_calibrated_loss_is_bpcm_equation_13(batch, alpha):
    logits, labels, weights = batch
    expected = bpcm.objective(common.sigmoid(logits), labels, alpha, weights)
    assert run(CalibratedLoss(alpha), batch) == pytest.approx(expected, rel=1e-10)


@given(batches(), st.floats(0, 2))
def test_dependence_loss_is_tafe_equation_25(batch, dependence_weight):
    logits, labels, weights = batch
    task_weights = [0.5, 1.0, 2.0, 0.0][: logits.shape[1]]
    expected = tafe.objective(common.sigmoid(logits), labels, task_weights, dependence_weight, weights)
    assert run(DependenceLoss(dependence_weight, task_weights), batch) == pytest.approx(expected, rel=1e-10)


@given(batches())
def test_local_space_loss_is_tafe_equation_10(batch):
    logits, labels, weights = batch
    propensities = losses.step_propensity(logits, labels, min_propensity=0.05)
    expected = losses.local_space(common.sigmoid(logits), labels, propensities, weights)
    assert run(LocalSpaceLoss(min_propensity=0.05), batch) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("loss", [CrossEntropyLoss(), CalibratedLoss(), DependenceLoss(), LocalSpaceLoss()])
def test_extreme_logits_and_empty_batches_stay_finite(loss):
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0], [200.0, 200.0]], requires_grad=True)
    value = loss(logits, torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0]]))
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()
    assert loss(torch.empty(0, 2), torch.empty(0, 2)) == 0


@pytest.mark.parametrize("loss", [CrossEntropyLoss(), CalibratedLoss(), DependenceLoss(), LocalSpaceLoss()])
def test_a_masked_label_may_be_nan(loss):
    """It changes neither the value nor the gradient."""
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
        (lambda: CrossEntropyLoss([1.0, -1.0]), r"`task_weights` \(=\[1.0, -1.0\]\) must not be negative"),
        (lambda: LocalSpaceLoss(0.0), r"`min_propensity` \(=0.0\) must be above 0"),
    ],
)
def test_a_wrong_argument_is_told(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()
