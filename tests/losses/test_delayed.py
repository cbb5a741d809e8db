"""The loss for labels that arrive late: the paper's formula, where its minimum is, and what it refuses."""

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given

from tests.losses.strategies import few_examples, forest_batch, forests, seeds
from tests.oracles import common, losses
from tests.support import TASKS, TREE, with_late_labels
from torchrec_mtl.errors import InputError
from torchrec_mtl.losses import CrossEntropyLoss, DelayedLoss
from torchrec_mtl.tasks import Task, TaskForest

BUY = TaskForest(Task("buy"), Task("buy_delayed"), Task("buy_real_negative"))


@few_examples
@given(forests(), seeds)
def test_it_equals_the_oracle_for_any_tasks_of_which_several_are_late(tasks, seed):
    num_tasks = len(tasks)
    tasks = with_late_labels(with_late_labels(tasks), late=0)
    logits, labels, weights = forest_batch(tasks, seed)
    corrected = [(0, num_tasks + 2, num_tasks + 3), (num_tasks - 1, num_tasks, num_tasks + 1)]
    task_weights = (np.random.default_rng(seed).integers(0, 4, len(tasks)) / 2).tolist()  # exact in float32
    tensors = [torch.tensor(x) for x in (logits, labels, weights)]
    found = DelayedLoss(tasks, task_weights=task_weights).double()(*tensors).item()
    expected = losses.delayed(common.sigmoid(logits), labels, corrected, weights, task_weights)
    assert found == pytest.approx(expected, rel=1e-10)


def test_no_gradient_flows_through_the_weights():
    logits = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    weights = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    DelayedLoss(BUY)(logits, labels, weights).backward()
    assert logits.grad[:, 0].tolist() == [-0.375, 0.1875]  # of 1.5 and .75 times half a row
    assert not logits.grad[:, 1:].any()


def stream(buy, late):
    """The rows that ES-DFM reads of one x, in expectation: labels [5, 3] and weights [5, 3]."""
    rows = [
        ((1, 0, 0), buy - late, (1, 1, 0)),  # happened while it was waited for
        ((0, 1, 0), late, (1, 1, 1)),  # happened later: first a 0
        ((1, 0, 0), late, (1, 0, 0)),  # and then once more
        ((0, 0, 1), 1 - buy, (1, 1, 1)),  # never happened
    ]
    labels, shares, known = zip(*rows, strict=True)
    weights = len(rows) * np.array(known) * np.array(shares)[:, None]
    return torch.tensor(labels, dtype=torch.float64), torch.tensor(weights)


@pytest.mark.parametrize("buy", [0.3, 0.01])
@pytest.mark.parametrize("late", [0.1, 0.9])  # of those that happen
@pytest.mark.parametrize("loss", [DelayedLoss, CrossEntropyLoss])
def test_the_minimum_is_the_truth_and_without_weights_it_is_not(loss, buy, late):
    labels, weights = stream(buy, late * buy)
    made = loss(BUY)

    def gradient(values):
        leaf = torch.tensor(values, requires_grad=True)
        return torch.autograd.grad(made(leaf.expand(4, 3), labels, weights), leaf)[0].numpy()

    found = common.sigmoid(scipy.optimize.root(gradient, [-1.0, -1.0, 1.0], tol=1e-13).x)
    p_dp, p_rn = late * buy, (1 - buy) / (1 - buy + late * buy)
    expected = buy if loss is DelayedLoss else buy / (1 + p_dp)
    assert found == pytest.approx([expected, p_dp, p_rn], rel=1e-6)


def test_the_stream_without_its_copies_is_further_from_the_truth():
    """What the copies are for: first labels alone miss all that is late."""
    labels, weights = stream(0.3, 0.15)
    weights[2] = 0
    assert ((labels * weights)[:, 0].sum() / weights[:, 0].sum()).item() == pytest.approx(0.15)


@pytest.mark.parametrize("tasks", [TASKS, TREE, TaskForest(Task("buy"), Task("buy_delayed"))], ids=str)
def test_tasks_without_late_labels_are_refused(tasks):
    with pytest.raises(InputError, match=r"^`tasks` \(=\[.*\]\) of DelayedLoss must have a task with '<task>_delayed'"):
        DelayedLoss(tasks)
