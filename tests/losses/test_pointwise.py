"""Focal loss and label smoothing, against loops in float64 and by where their minima are."""

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.losses.strategies import batches
from tests.oracles import common, losses
from tests.support import chain
from torchrec_mtl.errors import InputError
from torchrec_mtl.losses import CrossEntropyLoss, FocalLoss, LabelSmoothingLoss


def run(loss, batch):
    return loss.double()(*(None if x is None else torch.tensor(x) for x in batch)).item()


@given(batches(), st.floats(0, 5), st.floats(0.05, 0.95), st.booleans())
def test_focal_loss_matches_its_equation(batch, gamma, alpha, weighted):
    logits, labels, weights = batch
    task_weights = [0.5, 1.0, 2.0, 0.0][: logits.shape[1]] if weighted else None
    expected = losses.focal(common.sigmoid(logits), labels, gamma, alpha, weights, task_weights)
    loss = FocalLoss(chain(logits.shape[1]), gamma=gamma, alpha=alpha, task_weights=task_weights)
    assert run(loss, batch) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(batches(), st.floats(0, 0.9))
def test_label_smoothing_matches_its_equation(batch, smoothing):
    logits, labels, weights = batch
    expected = losses.smoothed(common.sigmoid(logits), labels, smoothing, weights)
    loss = LabelSmoothingLoss(chain(logits.shape[1]), smoothing=smoothing)
    assert run(loss, batch) == pytest.approx(expected, rel=1e-9)


@given(batches())
def test_without_gamma_or_smoothing_they_are_the_cross_entropy(batch):
    num_tasks = batch[0].shape[1]
    cross_entropy = run(CrossEntropyLoss(chain(num_tasks)), batch)
    assert 2 * run(FocalLoss(chain(num_tasks), gamma=0.0), batch) == pytest.approx(cross_entropy, rel=1e-9)
    smoothing = LabelSmoothingLoss(chain(num_tasks), smoothing=0.0)
    assert run(smoothing, batch) == pytest.approx(cross_entropy, rel=1e-9)


def where_least(loss, p):
    """The probability at which a loss of one task is least, where ``p`` of the rows have label 1."""
    labels, weights = torch.tensor([[0.0], [1.0]]).double(), torch.tensor([[1 - p], [p]]).double()

    def expected(logit):
        return loss(torch.full((2, 1), logit, dtype=torch.float64), labels, weights).item()

    logit = scipy.optimize.minimize_scalar(expected, bounds=(-30, 30), method="bounded", options={"xatol": 1e-12}).x
    return torch.tensor(logit, dtype=torch.float64)


@pytest.mark.parametrize(
    ("loss", "p", "comes_out"),
    [
        (FocalLoss(chain(1)), 0.1, 0.306),
        (FocalLoss(chain(1)), 0.01, 0.154),
        (LabelSmoothingLoss(chain(1)), 0.01, 0.059),
    ],
    ids=["focal .1", "focal .01", "smoothed .01"],
)
def test_the_minimum_is_off_by_what_the_docstring_says(loss, p, comes_out):
    assert where_least(loss, p).sigmoid().item() == pytest.approx(comes_out, abs=0.0005)
    assert str(comes_out).lstrip("0") in type(loss).__doc__


@pytest.mark.parametrize("p", [0.9, 0.3, 0.01, 1e-4])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9])
def test_true_logits_of_focal_loss_give_the_truth_back(p, gamma, alpha):
    loss = FocalLoss(chain(1), gamma=gamma, alpha=alpha)
    assert loss.true_logits(where_least(loss, p)).sigmoid().item() == pytest.approx(p, rel=1e-4)


@pytest.mark.parametrize("p", [0.9, 0.3, 0.01, 1e-4])
@pytest.mark.parametrize("smoothing", [0.0, 0.01, 0.1])
def test_true_logits_of_label_smoothing_give_the_truth_back(p, smoothing):
    loss = LabelSmoothingLoss(chain(1), smoothing=smoothing)
    found = loss.true_logits(where_least(loss, p)).sigmoid().item()
    assert found == pytest.approx(p, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_true_logits_rise_and_stay_finite_far_out(dtype):
    far = torch.linspace(-300, 300, 601, dtype=dtype)
    for gamma in (0.0, 0.5, 2.0):
        true = FocalLoss(chain(1), gamma=gamma).true_logits(far)
        assert true.isfinite().all()
        assert (true.diff() > 0).all()
    smoothed = LabelSmoothingLoss(chain(1)).true_logits(far)
    assert (smoothed[1:] >= smoothed[:-1]).all()
    assert smoothed[0] == -torch.inf


@pytest.mark.parametrize("gamma", [0.0, 0.3, 2.0])
def test_extreme_logits_masked_labels_and_empty_batches_stay_finite(gamma):
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0], [200.0, 200.0]], requires_grad=True)
    labels = torch.tensor([[0.0, torch.nan], [1.0, 1.0], [torch.nan, 0.0]])
    weights = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    for loss in (FocalLoss(chain(2), gamma=gamma), LabelSmoothingLoss(chain(2))):
        value = loss(logits, labels, weights)
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.isfinite()
        assert gradient.isfinite().all()
        assert loss(torch.empty(0, 2), torch.empty(0, 2)) == 0


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: FocalLoss(chain(2), gamma=-1.0), r"`gamma` \(=-1.0\) must be at least 0"),
        (lambda: FocalLoss(chain(2), alpha=1.0), r"`alpha` \(=1.0\) must be above 0 and below 1"),
        (lambda: FocalLoss(chain(2), alpha=float("nan")), r"`alpha` \(=nan\) must be above 0 and below 1"),
        (lambda: LabelSmoothingLoss(chain(2), smoothing=1.0), r"`smoothing` \(=1.0\) must be at least 0 and below 1"),
    ],
)
def test_wrong_arguments_raise(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


def test_a_teachers_probabilities_are_labels():
    """The cross entropy is least at their mean."""
    teacher, logit = torch.tensor([[0.1], [0.4]]).double(), torch.zeros(1).double().requires_grad_()
    loss = CrossEntropyLoss(chain(1))

    def gradient(value):
        return torch.autograd.grad(loss((logit + value).expand(2, 1), teacher), logit)[0].item()

    assert scipy.optimize.brentq(gradient, -5, 5) == pytest.approx(np.log(0.25 / 0.75))
