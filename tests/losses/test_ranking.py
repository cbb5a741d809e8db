"""The losses that compare the rows of a group, against loops in float64, and by exact enumeration of all labels."""

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.losses.strategies import batches, few_examples, seeds
from tests.oracles import common, losses
from tests.support import chain
from torchrec_mtl.errors import InputError
from torchrec_mtl.losses import CrossEntropyLoss, JRCLoss, PairwiseLoss, pairwise


@st.composite
def grouped(draw):
    logits, labels, weights = draw(batches())
    rng = np.random.default_rng(draw(seeds))
    task_weights = rng.choice([0.0, 0.5, 2.0], logits.shape[1]).tolist() if draw(st.booleans()) else None
    other = rng.normal(size=logits.shape) if draw(st.booleans()) else None
    return logits, labels, weights, rng.integers(-1, 2, len(logits)), task_weights, other


def run(loss, logits, labels, weights, **further):
    given = [None if x is None else torch.tensor(x) for x in (logits, labels, weights)]
    return loss.double()(*given, **{name: torch.tensor(x) for name, x in further.items() if x is not None}).item()


@few_examples
@given(grouped(), st.floats(0, 2))
def test_pairwise_loss_matches_the_oracle(case, pairwise_weight):
    logits, labels, weights, groups, task_weights, _ = case
    loss = PairwiseLoss(chain(logits.shape[1]), pairwise_weight=pairwise_weight, task_weights=task_weights)
    expected = losses.cross_entropy(common.sigmoid(logits), labels, weights, task_weights)
    expected += pairwise_weight * losses.pairwise(logits, labels, groups, weights, task_weights)
    assert run(loss, logits, labels, weights, groups=groups) == pytest.approx(expected, rel=1e-9)


@few_examples
@given(grouped(), st.floats(0, 1))
def test_jrc_loss_matches_the_oracle(case, alpha):
    logits, labels, weights, groups, task_weights, other = case
    loss = JRCLoss(chain(logits.shape[1]), alpha=alpha, task_weights=task_weights)
    f0 = np.zeros_like(logits) if other is None else other
    expected = alpha * losses.cross_entropy(common.sigmoid(logits), labels, weights, task_weights)
    f = np.stack([f0, f0 + logits], axis=2)
    expected += (1 - alpha) * losses.listwise(f, labels, groups, weights, task_weights)
    found = run(loss, logits, labels, weights, groups=groups, other_logits=other)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def at_rest(loss, p, reads_other=False):
    """The probabilities at which the expected loss of one group of rows with the probabilities ``p`` is least."""
    p, num_rows = np.array(p), len(p)
    outcomes = [np.array(labels) for labels in itertools.product((0.0, 1.0), repeat=num_rows)]
    chances = [np.where(labels == 1, p, 1 - p).prod() for labels in outcomes]
    groups = torch.zeros(num_rows, dtype=torch.long)

    def gradient(values):
        leaf = torch.tensor(values, requires_grad=True)
        further = {"other_logits": torch.cat([leaf[num_rows:], leaf.new_zeros(1)])[:, None]} if reads_other else {}
        expected = sum(
            chance * loss(leaf[:num_rows, None], torch.tensor(labels)[:, None], groups=groups, **further)
            for chance, labels in zip(chances, outcomes, strict=True)
        )
        return torch.autograd.grad(expected, leaf)[0].numpy()

    start = [*(np.log(p / (1 - p)) + 0.3), *([0.0] * (num_rows - 1) if reads_other else [])]
    found = scipy.optimize.root(gradient, start, tol=1e-13)
    assert np.abs(found.fun).max() < 1e-10
    return 1 / (1 + np.exp(-found.x[:num_rows]))


DIFFERENT = [0.01, 0.05, 0.3]


def test_pairs_are_least_at_the_truth_where_rows_differ():
    """Alone they leave the level open; divided by the negatives instead of the rows, they would be biased."""
    np.testing.assert_allclose(at_rest(PairwiseLoss(chain(1), pairwise_weight=5.0), DIFFERENT), DIFFERENT, rtol=1e-7)


def test_jrc_is_least_at_the_truth_with_a_second_logit():
    np.testing.assert_allclose(at_rest(JRCLoss(chain(1)), DIFFERENT, reads_other=True), DIFFERENT, rtol=1e-6)


@pytest.mark.parametrize(
    ("p", "comes_out"), [([0.1, 0.2], [0.1036, 0.1964]), ([0.01, 0.02], [0.01003, 0.01997])], ids=str
)
def test_jrc_without_a_second_logit_is_off_by_what_its_docstring_says(p, comes_out):
    found = at_rest(JRCLoss(chain(1)), p)
    np.testing.assert_allclose(found, comes_out, rtol=1e-3)
    for value in comes_out:
        assert f"{value:g}".lstrip("0") in JRCLoss.__doc__


@pytest.mark.parametrize("make", [PairwiseLoss, JRCLoss])
def test_rows_of_other_groups_and_masked_rows_do_not_matter(make):
    logits = torch.tensor([[1.0], [2.0], [3.0], [4.0]], requires_grad=True)
    labels, groups = torch.tensor([[1.0], [0.0], [0.0], [0.0]]), torch.tensor([7, 7, -3, 7])
    weights = torch.tensor([[1.0], [1.0], [1.0], [0.0]])
    loss = make(chain(1), **({"alpha": 0.0} if make is JRCLoss else {"pairwise_weight": 1e6}))
    (gradient,) = torch.autograd.grad(loss(logits, labels, weights, groups=groups), logits)
    assert (gradient[:2].abs() > 0).any()
    assert gradient[2].abs() < 1  # of the cross entropy alone
    assert gradient[3] == 0


def test_pairs_far_apart_cost_their_distance_where_the_order_is_wrong():
    logits = 1e4 * torch.tensor([[1.0], [3.0], [2.0], [4.0]]).double()
    labels = torch.tensor([[0.0], [1.0], [1.0], [0.0]]).double()
    wrong = (4 - 3) + (4 - 2)  # a negative above both positives
    found = pairwise(logits, labels, torch.zeros(4, dtype=torch.long))
    assert found.item() == pytest.approx(1e4 * wrong / 4 / 4)


@pytest.mark.parametrize("make", [PairwiseLoss, JRCLoss])
def test_extreme_logits_masked_labels_and_empty_batches_stay_finite(make):
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0], [200.0, 200.0]], requires_grad=True)
    labels = torch.tensor([[0.0, torch.nan], [1.0, 1.0], [torch.nan, 0.0]])
    weights = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    for groups in (torch.zeros(3).int(), torch.arange(3), torch.tensor([2**62, 0, -(2**62)])):
        value = make(chain(2))(logits, labels, weights, groups=groups)
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.isfinite()
        assert gradient.isfinite().all()
    nothing = torch.empty(0, 2)
    assert make(chain(2))(nothing, nothing, groups=torch.empty(0).int()) == 0


@pytest.mark.parametrize("make", [PairwiseLoss, JRCLoss])
def test_alone_in_its_group_a_row_counts_as_in_the_cross_entropy(make):
    logits, labels = torch.randn(5, 2), torch.ones(5, 2)
    share = 0.5 if make is JRCLoss else 1.0
    expected = share * CrossEntropyLoss(chain(2))(logits, labels)
    torch.testing.assert_close(make(chain(2))(logits, labels, groups=torch.arange(5)), expected)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: PairwiseLoss(chain(2), pairwise_weight=-1.0), r"`pairwise_weight` \(=-1.0\) must be at least 0"),
        (lambda: JRCLoss(chain(2), alpha=1.5), r"`alpha` \(=1.5\) must be from 0 to 1"),
    ],
)
def test_wrong_arguments_raise(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


@pytest.mark.parametrize("make", [PairwiseLoss, JRCLoss])
def test_groups_that_are_no_integers_raise(make):
    with pytest.raises(InputError, match=r"`groups` \(of torch.float32\) must be integers"):
        make(chain(1))(torch.zeros(2, 1), torch.zeros(2, 1), groups=torch.zeros(2))
