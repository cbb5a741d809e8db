"""The heads of values: units, starts, order, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from torchrec_mtl import ZILN, Classes, Huber, Ordinal, Quantile, SquaredError, Task, TaskForest
from torchrec_mtl.data.label_statistics import LabelCounts
from torchrec_mtl.errors import InputError
from torchrec_mtl.modules import LabelStatistics, TaskTowers, give_heads
from torchrec_mtl.modules.heads import SMALLEST_SIGMA, ValueHead, predicted

LABELS = np.random.default_rng(0).lognormal(4, 0.8, 1000) * (np.arange(1000) % 4 > 0)


def statistics(labels):
    logs = np.log(labels[labels > 0])
    return LabelStatistics(len(labels), labels.mean(), labels.std(), len(logs), logs.mean(), logs.std())


def started(kind, labels=LABELS):
    head = ValueHead(kind, "spend", 3)
    head.start(statistics(labels))
    return head


@pytest.mark.parametrize("kind", [SquaredError(), Huber()])
def test_a_head_starts_at_the_mean_and_moves_by_deviations(kind):
    head = started(kind)
    assert float(head(torch.zeros(1, 3))) == pytest.approx(LABELS.mean(), rel=1e-6)
    nn.init.ones_(head.linear.weight)
    assert float(head(torch.full((1, 3), 1 / 3))) == pytest.approx(LABELS.mean() + LABELS.std(), rel=1e-6)


def test_a_head_of_ziln_starts_at_the_log_normal_of_the_labels():
    outputs = started(ZILN())(torch.zeros(1, 3))
    logs = np.log(LABELS[LABELS > 0])
    share = (len(logs) + 1) / (len(LABELS) + 2)
    expected = [math.log(share / (1 - share)), logs.mean(), logs.std()]
    np.testing.assert_allclose(outputs[0].detach(), expected, rtol=1e-5)
    mean = share * math.exp(logs.mean() + logs.var() / 2)
    assert float(predicted(ZILN(), outputs)) == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("kind", [Classes(4), Ordinal(4)], ids=["classes", "ordinal"])
def test_a_head_of_classes_starts_at_their_shares(kind):
    counts = LabelCounts(TaskForest(Task("stars", kind=kind)))
    for labels in ([0, 0, 0, 1], [3, 3, 0, 0]):
        counts.add(np.array(labels, np.float32)[:, None])
    statistics_ = counts.values()["stars"]
    assert statistics_.of_classes == (5, 1, 0, 2)
    head = ValueHead(kind, "stars", 3)
    head.start(statistics_)
    found = predicted(kind, head(torch.zeros(1, 3)))[0].detach()
    np.testing.assert_allclose(found, np.array([6, 2, 1, 3]) / 12, rtol=1e-4)
    with pytest.raises(InputError, match=r"statistics of 'stars' .* must count its classes"):
        head.start(statistics(LABELS))


def test_classes_with_an_order_keep_it():
    """Whatever the thresholds are, and they learn."""
    torch.manual_seed(0)
    head = ValueHead(Ordinal(5), "stars", 3)
    nn.init.normal_(head.thresholds)
    outputs = head(torch.randn(20, 3))
    assert (outputs.diff(dim=1) <= 0).all()
    predicted(head.kind, outputs)[:, 1].sum().backward()
    assert head.thresholds.grad.abs().sum() > 0
    shares = predicted(head.kind, torch.tensor([[0.0, 0.0, -50.0, -50.0]]))
    assert shares.isfinite().all()
    assert float(shares.sum()) == pytest.approx(1, abs=1e-5)


def test_sigma_has_a_least_value_and_quantiles_never_cross():
    head = ValueHead(ZILN(), "spend", 1)
    nn.init.constant_(head.linear.bias, -1000.0)
    assert float(head(torch.zeros(1, 1))[0, 2]) == pytest.approx(SMALLEST_SIGMA)
    torch.manual_seed(0)
    quantiles = ValueHead(Quantile((0.1, 0.5, 0.9)), "dwell", 4)(torch.randn(50, 4))
    assert (quantiles.diff(dim=1) >= 0).all()


@pytest.mark.parametrize("labels", [np.zeros(5), np.full(5, 7.0), np.array([0.0, 0.0, 3.0]), np.array([1e-30, 1e30])])
@pytest.mark.parametrize("kind", [SquaredError(), Huber(), ZILN(), Quantile((0.01, 0.99))])
def test_any_labels_give_finite_outputs(kind, labels):
    """The statistics are the data's own: their deviations are never 0."""
    counts = LabelCounts(TaskForest(Task("spend", kind=kind)))
    counts.add(labels[:, None])
    head = ValueHead(kind, "spend", 3)
    head.start(counts.values()["spend"])
    outputs = head(torch.randn(20, 3))
    assert outputs.isfinite().all()
    if kind.name == "ziln":
        assert (outputs[:, 2] >= SMALLEST_SIGMA).all()


def test_heads_are_of_values_alone_and_need_a_tower():
    tasks = TaskForest(Task("buy"), Task("spend", after="buy", kind=ZILN()))
    towers = TaskTowers(2, 5, (4,))
    give_heads(towers, tasks)
    assert towers([torch.zeros(3, 5)] * 2).shape == (3, 4)
    assert [tower.is_binary for tower in towers.towers] == [True, False]
    with pytest.raises(InputError, match=r"^Sequential must have one `Tower` a task \(2\), not 0, to learn the value"):
        give_heads(nn.Sequential(), tasks)
    with pytest.raises(InputError, match="`base_rates` must be given to towers that end in a logit"):
        towers.towers[1].start_from_base_rate(0.5)
    with pytest.raises(InputError, match="a head must not start on the meta device"), torch.device("meta"):
        ValueHead(ZILN(), "spend", 3).start(statistics(LABELS))
