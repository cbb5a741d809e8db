"""The losses of values: the papers' equations in NumPy and SciPy, minima, weights, units, and what they refuse."""

import math
import re

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch

from torchrec_mtl import ZILN, Classes, Huber, Ordinal, Quantile, SquaredError, Task, TaskForest
from torchrec_mtl.errors import InputError
from torchrec_mtl.losses import CalibratedLoss, CrossEntropyLoss, FunnelAndValues
from torchrec_mtl.losses.values import loss_of_all, value_loss
from torchrec_mtl.modules.heads import LabelStatistics, predicted
from torchrec_mtl.systems import LOSSES

KINDS = [SquaredError(), Huber(0.7), ZILN(), Quantile((0.2, 0.5, 0.9)), Classes(3), Ordinal(4)]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])


def funnel(kind):
    spend = Task("spend", after="buy", kind=kind)
    return TaskForest(Task("click"), Task("buy", after="click"), spend, Task("dwell", kind=kind))


def oracle(kind, outputs, labels, unit):
    """Each row's loss in float64, from the definitions of the distributions where there are any."""
    if kind.name == "ziln":
        logit, mu, sigma = outputs.T
        p = 1 / (1 + np.exp(-logit))
        positive = labels > 0
        density = scipy.stats.lognorm(s=sigma, scale=np.exp(mu)).logpdf(np.where(positive, labels, 1.0))
        return np.where(positive, -np.log(p) - density, -np.log(1 - p))
    if kind.name in ("classes", "ordinal"):
        return -np.log(probabilities(kind, outputs)[np.arange(len(labels)), labels.astype(int)])
    z = (labels[:, None] - outputs) / unit
    if kind.name == "huber":
        return scipy.special.huber(kind.delta, z[:, 0])
    if kind.name == "quantile":
        levels = np.array(kind.levels)
        return np.where(z >= 0, levels * z, (levels - 1) * z).mean(1)
    return z[:, 0] ** 2


def probabilities(kind, outputs):
    """Of classes; those of an order are differences of P(class > k)."""
    if kind.name == "classes":
        return scipy.special.softmax(outputs, axis=1)
    above = np.pad(1 / (1 + np.exp(-outputs)), ((0, 0), (1, 1)), constant_values=((0, 0), (1, 0)))
    return above[:, :-1] - above[:, 1:]


def drawn(kind, num_rows, rng):
    outputs = rng.normal(size=(num_rows, kind.num_outputs))
    if kind.name in ("classes", "ordinal"):
        ordered = -np.sort(-outputs, axis=1) if kind.name == "ordinal" else outputs
        return ordered, rng.integers(0, kind.num_classes, num_rows).astype(float)
    if kind.name == "ziln":
        outputs[:, 2] = rng.uniform(0.1, 2, num_rows)
    return outputs, np.where(rng.random(num_rows) < 0.4, 0.0, rng.lognormal(size=num_rows))


@every_kind
def test_a_loss_is_its_equation(kind):
    outputs, labels = drawn(kind, 200, np.random.default_rng(0))
    found = value_loss(kind, torch.from_numpy(outputs), torch.from_numpy(labels), 2.5)
    np.testing.assert_allclose(found, oracle(kind, outputs, labels, 2.5), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", [Classes(3), Ordinal(4)], ids=["classes", "ordinal"])
def test_the_minimum_of_classes_on_a_constant_x_is_their_shares(kind):
    shares = np.array([0.5, 0.2, 0.1, 0.2])[: kind.num_classes]
    labels = torch.arange(kind.num_classes).double()

    def mean_loss(raw):
        outputs = torch.tensor(-np.sort(-raw) if kind.name == "ordinal" else raw).expand(kind.num_classes, -1)
        return float((torch.from_numpy(shares) * value_loss(kind, outputs, labels)).sum())

    found = scipy.optimize.minimize(mean_loss, np.linspace(0.5, -0.5, kind.num_outputs)).x
    outputs = torch.tensor(-np.sort(-found) if kind.name == "ordinal" else found)[None]
    np.testing.assert_allclose(predicted(kind, outputs)[0], shares / shares.sum(), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS[:4], ids=[kind.name for kind in KINDS[:4]])
def test_the_minimum_on_a_constant_x_is_the_truth(kind):
    """Of 400 labels, half of them 0 and the others log-normal."""
    rng = np.random.default_rng(1)
    labels = np.concatenate([np.zeros(200), np.exp(scipy.stats.norm(1.0, 0.5).ppf((np.arange(200) + 0.5) / 200))])
    rng.shuffle(labels)

    def mean_loss(raw):
        outputs = torch.tensor(raw, dtype=torch.float64).expand(len(labels), -1)
        return float(value_loss(kind, outputs, torch.from_numpy(labels)).mean())

    bounds = [(-5, 5), (-5, 5), (1e-3, 5)] if kind.name == "ziln" else [(-1, 30)] * kind.num_outputs
    start = [0.1, 0.5, 1.0] if kind.name == "ziln" else np.linspace(1.0, 3.0, kind.num_outputs)
    exact = {"xtol": 1e-9, "ftol": 1e-14}
    found = scipy.optimize.minimize(mean_loss, start, bounds=bounds, method="Powell", options=exact)
    best = predicted(kind, torch.tensor(found.x, dtype=torch.float64)[None])[0].numpy()
    if kind.name == "quantile":
        for quantile, level in zip(best, kind.levels, strict=True):
            assert (labels < quantile - 1e-6).mean() <= level <= (labels <= quantile + 1e-6).mean()
    elif kind.name == "huber":  # where labels that are further than delta pull as if they were at delta
        assert np.clip(labels - best[0], -kind.delta, kind.delta).mean() == pytest.approx(0, abs=1e-6)
        assert np.median(labels) <= best[0] < labels.mean()
    else:
        assert best[0] == pytest.approx(labels.mean(), rel=1e-5 if kind.name == "squared_error" else 5e-3)


@every_kind
def test_a_weight_counts_rows(kind):
    tasks, rng = funnel(kind), np.random.default_rng(2)
    loss = FunnelAndValues(CrossEntropyLoss(tasks.funnel), tasks, task_weights=[0.5, 2.0])
    logits, labels, weights = inputs(tasks, 9, rng)
    times = torch.tensor([2, 0, 1, 3, 1, 1, 0, 2, 1])
    rows = torch.arange(9).repeat_interleave(times)
    weighted = loss(logits, labels, weights * times[:, None]) * 9
    repeated = loss(logits[rows], labels[rows], weights[rows]) * len(rows)
    torch.testing.assert_close(weighted, repeated, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(loss(logits, labels), loss(logits, labels, torch.ones_like(weights)))


def inputs(tasks, num_rows, rng):
    kind = tasks.tasks[-1].kind
    happened = np.cumprod(rng.random((num_rows, 2)) < 0.7, axis=1)
    of_values = [drawn(kind, num_rows, rng) for _ in tasks.values]
    logits = np.concatenate([rng.normal(size=(num_rows, 2)), *(outputs for outputs, _ in of_values)], axis=1)
    labels = np.concatenate([happened, np.stack([values for _, values in of_values], 1)], axis=1)
    weights = rng.integers(0, 3, labels.shape) * rng.random(labels.shape)
    return torch.from_numpy(logits), torch.from_numpy(labels), torch.from_numpy(weights)


@every_kind
def test_a_value_counts_where_the_step_before_happened(kind):
    """The whole loss against the sum of its parts; a label that does not count may be NaN."""
    tasks, rng = funnel(kind), np.random.default_rng(3)
    logits, labels, weights = inputs(tasks, 50, rng)
    loss = FunnelAndValues(CalibratedLoss(tasks.funnel), tasks, task_weights=[0.5, 2.0])
    loss.start({name: LabelStatistics(9, 0.0, unit, 5, 0.0, 1.0) for name, unit in (("spend", 4.0), ("dwell", 0.5))})
    expected = float(CalibratedLoss(tasks.funnel)(logits[:, :2], labels[:, :2], weights[:, :2]))
    counts = weights.numpy().copy()
    counts[:, 2] *= ((labels[:, 1] == 1) & (weights[:, 1] > 0)).numpy()
    for place, weight, unit in ((2, 0.5, 4.0), (3, 2.0, 0.5)):
        outputs = logits[:, tasks.outputs[place]].numpy()
        losses = oracle(kind, outputs, labels[:, place].numpy(), unit)
        expected += weight * float((counts[:, place] * losses).sum()) / 50
    labels[:, 2:][torch.from_numpy(counts[:, 2:] == 0)] = math.nan
    logits.requires_grad_()
    found = loss(logits, labels, weights)
    assert float(found) == pytest.approx(expected, rel=1e-6)
    found.backward()
    assert logits.grad.isfinite().all()
    assert not logits.grad[:, tasks.outputs[2]][counts[:, 2] == 0].any()


def test_the_currency_does_not_change_what_is_learned():
    """In another unit, outputs and labels are larger, and losses and gradients of the standardised outputs the same."""
    tasks = TaskForest(Task("spend", kind=SquaredError()))
    outputs, labels = torch.tensor([[3.0], [5.0]]), torch.tensor([[2.0], [9.0]])
    losses = []
    for unit in (1.0, 100.0):
        loss = FunnelAndValues(None, tasks)
        loss.start({"spend": LabelStatistics(2, 5.5 * unit, 3.5 * unit, 2, 0.0, 1.0)})
        losses.append(loss(outputs * unit, labels * unit))
    torch.testing.assert_close(*losses)


def test_task_weights_are_of_all_tasks():
    tasks = funnel(SquaredError())
    loss = loss_of_all(CrossEntropyLoss, tasks, task_weights=[1.0, 0.5, 0.25, 0.0])
    logits, labels, _ = inputs(tasks, 5, np.random.default_rng(4))
    of_funnel = CrossEntropyLoss(tasks.funnel, task_weights=[1.0, 0.5])(logits[:, :2], labels[:, :2])
    spend = ((logits[:, 2] - labels[:, 2]) ** 2 * labels[:, 1]).mean()
    torch.testing.assert_close(loss(logits, labels), of_funnel + 0.25 * spend)
    with pytest.raises(InputError, match=r"`task_weights` \(=\[1.0, 0.5\]\) must be one a task: \['click', 'buy', "):
        loss_of_all(CrossEntropyLoss, tasks, task_weights=[1.0, 0.5])


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "delayed"])
def test_a_loss_of_a_funnel_names_what_a_value_needs(name):
    with pytest.raises(InputError, match=r"of which 'spend' is a value, must be `TaskForest.funnel`"):
        LOSSES[name](funnel(ZILN()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"logits": torch.zeros(3, 4)}, "`logits` (of shape [3, 4]) must be [B, 8], for click -> buy -> spend, dwell"),
        ({"labels": torch.zeros(3, 8)}, "`labels` (of shape [3, 8]) must be [B, 4], for click -> buy -> spend, dwell"),
        ({"weights": torch.zeros(3)}, "`weights` (of shape [3]) must be [3, 4]"),
    ],
)
def test_other_shapes_are_refused(call, message):
    tasks = funnel(ZILN())
    given = {"logits": torch.ones(3, 8), "labels": torch.zeros(3, 4), "weights": None}
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        FunnelAndValues(CrossEntropyLoss(tasks.funnel), tasks)(**{**given, **call})


def test_other_arguments_are_refused():
    tasks = funnel(ZILN())
    with pytest.raises(InputError, match=r"`funnel` must be the loss of the tasks that happen or not: "):
        FunnelAndValues(None, tasks)
    with pytest.raises(InputError, match=r"`task_weights` \(=\[1.0\]\) must be one for each of \['spend', 'dwell'\]"):
        FunnelAndValues(CrossEntropyLoss(tasks.funnel), tasks, task_weights=[1.0])
    with pytest.raises(InputError, match=r"`task_weights` \(=-1.0\) must be at least 0"):
        FunnelAndValues(CrossEntropyLoss(tasks.funnel), tasks, task_weights=[1.0, -1.0])
