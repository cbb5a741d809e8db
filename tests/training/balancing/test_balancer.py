"""Balanced gradients of whole models are those of each task, taken one by one and weighted by the oracles."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchrec import KeyedJaggedTensor

from tests.support import MODELS, NUM_EMBEDDINGS, TASKS, batch, build, tables, tasks_for, train_model, with_late_labels
from tests.training.balancing.cases import WEIGHTS, make
from torchrec_mtl import MultiTaskTrain, TaskChain, losses
from torchrec_mtl.data import MultiTaskBatch
from torchrec_mtl.errors import InputError
from torchrec_mtl.models import SharedBottom
from torchrec_mtl.modules import FeatureArch
from torchrec_mtl.systems import LOSSES
from torchrec_mtl.training.balancing import BALANCINGS
from torchrec_mtl.training.balancing.method import GRADIENTS
from torchrec_mtl.training.train_wrapper import reads_beyond_logits

# Names of the parameters above the features that several tasks' logits depend on: begin with one of these.
SHARED = {
    "shared_bottom": ("over_arch.bottom",),
    "mmoe": ("over_arch.mixture",),
    "esmm": ("over_arch.towers.towers.0", "over_arch.towers.towers.1"),  # p_purchase = p_click p_cart|click ...
    "single_task": (),
}


def of_each_task(model, rows):
    """Losses ``[T]``, and the gradients of each with respect to the representation and all parameters, by name."""
    found = []
    for task in range(len(TASKS)):
        alone = copy.deepcopy(model)
        read = []
        alone.features.register_forward_hook(lambda module, inputs, output, read=read: read.append(output))
        logits = alone(rows.dense_features, rows.sparse_features)
        read[0].retain_grad()
        terms = F.binary_cross_entropy_with_logits(logits[:, task], rows.labels[:, task].to(logits), reduction="none")
        loss = (terms * rows.weights[:, task]).sum() / len(logits)
        loss.backward()
        gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in alone.named_parameters()}
        found.append((loss.item(), read[0].grad, gradients))
    return found


def expected(name, model, batches, shared):
    """The gradients of the last of the batches, while the parameters stay."""
    method, history, gradients = make(name), [], []
    for rows in batches:
        each = of_each_task(model, rows)
        history.append([loss for loss, _, _ in each])
        above = shared if method.reads == "shared" else ()
        parts = [
            [read, *(g for key, g in of_task.items() if above and key.startswith(above))] for _, read, of_task in each
        ]
        gradients.append(np.stack([np.concatenate([part.double().flatten() for part in of_task]) for of_task in parts]))
    weights = WEIGHTS[name](np.array(history), gradients)
    plain = np.ones(len(TASKS)) if method.reads in GRADIENTS and not method.weighs_specific else weights
    return {
        key: sum(
            (weights if key.startswith(("features", *shared)) else plain)[task] * of_task[key]
            for task, (_, _, of_task) in enumerate(each)
        )
        for key in each[0][2]
    }


@pytest.mark.parametrize("system", ["shared_bottom", "mmoe", "esmm"])
@pytest.mark.parametrize("name", BALANCINGS)
def test_gradients_are_those_of_each_task_weighted(name, system):
    torch.manual_seed(0)
    model = build(system)
    batches = [batch(12, seed=seed, weighted=True) for seed in range(4)]
    trained = MultiTaskTrain(model, losses.CrossEntropyLoss(TASKS), make(name))
    for rows in batches:
        trained.zero_grad()
        value, (reported, _, _) = trained(rows)
        value.backward()
    plain, _ = MultiTaskTrain(model, losses.CrossEntropyLoss(TASKS))(batches[-1])
    torch.testing.assert_close(value, plain)
    torch.testing.assert_close(reported, plain)
    wanted = expected(name, model, batches, SHARED[system])
    assert max(g.abs().max() for g in wanted.values()) > 1e-3
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, wanted[key], rtol=2e-4, atol=1e-6, msg=lambda m, key=key: f"{key} {m}"
        )


@pytest.mark.parametrize("system", SHARED)
def test_what_several_tasks_depend_on_is_shared(system):
    """Single-Task has tables for each task, and shares nothing: its gradients stay those of the sum."""
    model, rows = build(system), batch(12)
    trained = MultiTaskTrain(model, losses.CrossEntropyLoss(TASKS), make("mgda"))
    trained(rows)[0].backward()
    num_features = sum(isinstance(module, FeatureArch) for module in model.modules())
    above = [name for name, _ in model.named_parameters() if not name.startswith("features")]
    of_features = [int(system != "single_task")] * num_features
    found = [int(bool(SHARED[system]) and name.startswith(SHARED[system])) for name in above]
    assert trained.balancer.shared.tolist() == of_features + found
    if system == "single_task":
        balanced = {name: p.grad for name, p in model.named_parameters()}
        model.zero_grad()
        MultiTaskTrain(model, losses.CrossEntropyLoss(TASKS))(rows)[0].backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(balanced[name], parameter.grad)


def test_a_task_that_is_masked_in_the_first_batch_shares_all_the_same():
    rows = batch(12, weighted=True)
    rows.weights[:, 1:] = 0
    trained = MultiTaskTrain(build("shared_bottom"), losses.CrossEntropyLoss(TASKS), make("pcgrad"))
    trained(rows)
    names = [name for name, _ in trained.model.over_arch.named_parameters()]
    assert trained.balancer.shared.tolist() == [1, *(int(name.startswith("bottom")) for name in names)]


def test_features_that_are_not_trained_are_refused():
    model = build("shared_bottom")
    model.features.requires_grad_(False)
    with pytest.raises(InputError, match="every `FeatureArch` of `model` must be trained"):
        MultiTaskTrain(model, losses.CrossEntropyLoss(TASKS), make("mgda"))(batch(12))


def a_loss(name, dtype=torch.float64):
    tasks = tasks_for(name)
    generator = torch.Generator().manual_seed(0)
    logits, further = (torch.randn(9, len(tasks), generator=generator, dtype=dtype, requires_grad=True) for _ in "ab")
    labels = (torch.rand(9, len(tasks), generator=generator) < 0.6).to(dtype).cumprod(1)
    weights = torch.randint(0, 3, labels.shape, generator=generator).to(dtype)
    loss = LOSSES[name](tasks)
    offered = {"conditional_logits": further, "groups": torch.arange(9) % 2}
    offered |= {name: further[:, 1:].detach() for name in ("counterfactual_logits", "conversion_logits")}
    read = {name: offered[name] for name, required in reads_beyond_logits(loss).items() if required}
    return logits, weights, lambda scaled: loss(logits, labels, scaled, **read)


@pytest.mark.parametrize("name", LOSSES)
def test_the_losses_of_tasks_are_what_a_task_of_twice_the_weight_adds(name):
    """By differences, with respect to the logits too; `static` gives each alone."""
    logits, weights, loss = a_loss(name)
    num_tasks = weights.shape[1]
    tasks = TaskChain([f"task_{t}" for t in range(num_tasks)])
    for task in range(num_tasks):
        twice = torch.ones(num_tasks, dtype=torch.float64)
        twice[task] = 2
        (wanted,) = torch.autograd.grad(loss(weights * twice) - loss(weights), logits)
        alone = (twice - 1).tolist()
        balancer = MultiTaskTrain(
            nn.Identity(), losses.CrossEntropyLoss(tasks), BALANCINGS["static"](tasks, weights=alone)
        )
        (found,) = torch.autograd.grad(balancer.balancer(loss, logits, weights, len(logits)), logits)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


class WithRegulariser(losses.CrossEntropyLoss):
    def __init__(self, tasks):
        super().__init__(tasks)

    def forward(self, logits, labels, weights=None):
        return super().forward(logits, labels, weights) + logits.square().mean()


def test_a_loss_that_is_no_sum_over_tasks_is_refused():
    trained = MultiTaskTrain(build("shared_bottom"), WithRegulariser(TASKS), make("uncertainty"))
    with pytest.raises(InputError, match=r"`loss` .=WithRegulariser. must be a sum of terms"):
        trained(batch(12))


def test_a_model_without_features_is_refused():
    with pytest.raises(InputError, match=r"`model` .=Linear. must have a `FeatureArch`"):
        MultiTaskTrain(nn.Linear(2, 3), losses.CrossEntropyLoss(TASKS), make("pcgrad"))


@pytest.mark.parametrize("name", BALANCINGS)
def test_an_evaluation_and_a_batch_that_is_not_finite_leave_the_state(name):
    trained = MultiTaskTrain(build("shared_bottom"), losses.CrossEntropyLoss(TASKS), make(name))
    trained(batch(12))
    before = copy.deepcopy(trained.state_dict())
    trained.eval()
    value, _ = trained(batch(12, seed=1))
    value.backward()
    trained.train()
    with torch.no_grad():
        trained(batch(12, seed=1))
    bad = batch(12, seed=2)
    bad.dense_features[3] = float("inf")
    value, _ = trained(bad)
    assert not value.isfinite()
    for key, saved in trained.state_dict().items():
        assert torch.equal(saved, before[key]), key


@pytest.mark.parametrize("system", MODELS)
def test_every_model_can_be_balanced(system):
    """With its own loss: every parameter that has a gradient without has one with."""
    for name in BALANCINGS:
        torch.manual_seed(0)
        plain = train_model(system)
        trained = MultiTaskTrain(plain.model, plain.loss, make(name))
        for module in (plain, trained):
            module.zero_grad()
            module(batch(12))[0].backward()
            with_gradient = {key for key, p in plain.named_parameters() if p.grad is not None}
            assert all(p.grad.isfinite().all() for p in trained.parameters() if p.grad is not None)
            if module is plain:
                wanted = with_gradient
        assert wanted <= with_gradient


def test_the_representations_gradients_are_the_tables_where_no_id_occurs_twice(monkeypatch):
    size = 5
    features = FeatureArch(tables())
    model = SharedBottom(features, TASKS, bottom_layer_sizes=(8,), tower_layer_sizes=(4,))
    ids = torch.cat([torch.randperm(n)[:size] for n in NUM_EMBEDDINGS])
    lengths = torch.ones(len(ids)).int()
    sparse = KeyedJaggedTensor([f"f{i}" for i in range(len(NUM_EMBEDDINGS))], ids, lengths=lengths)
    rows = MultiTaskBatch(torch.empty(size, 0), sparse, batch(size).labels, torch.ones(size, 3))
    trained, seen = MultiTaskTrain(model, losses.CrossEntropyLoss(TASKS), make("mgda")), []
    weigh = trained.balancer.method.forward
    monkeypatch.setattr(trained.balancer.method, "forward", lambda *given: seen.append(given) or weigh(*given))
    trained(rows)
    of_tasks = [of_task for _, _, of_task in of_each_task(model, rows)]
    own = [torch.cat([g.flatten() for key, g in of_task.items() if "embedding_bags" in key]) for of_task in of_tasks]
    wanted = torch.stack(own) @ torch.stack(own).T
    torch.testing.assert_close(seen[0][1], wanted.double(), rtol=1e-5, atol=1e-10)


def test_late_labels_can_be_balanced():
    tasks = with_late_labels(TASKS)
    trained = MultiTaskTrain(
        build("shared_bottom", tasks=tasks), losses.DelayedLoss(tasks), BALANCINGS["uncertainty"](tasks)
    )
    rows = batch(12)
    rows.labels = torch.cat([rows.labels, rows.labels[:, :2]], 1)
    trained(rows)[0].backward()
    assert trained.balancer.method.log_variances.grad.abs().min() > 0


def test_autocast_does_not_round_what_gradients_are_compared_by(monkeypatch):
    trained, seen = MultiTaskTrain(build("shared_bottom"), losses.CrossEntropyLoss(TASKS), make("mgda")), []
    weigh = trained.balancer.method.forward
    monkeypatch.setattr(trained.balancer.method, "forward", lambda *given: seen.append(given) or weigh(*given))
    with torch.autocast("cpu", torch.bfloat16):
        value, _ = trained(batch(12))
    value.backward()
    (_, gram), *_ = seen
    assert not torch.equal(gram.bfloat16().double(), gram)
    moved = trained.model.over_arch.bottom.get_parameter("_mlp.0._linear.weight").grad
    assert not torch.equal(moved.bfloat16().float(), moved)


def test_gradients_that_overflow_are_a_loss_that_is_not_finite():
    trained = MultiTaskTrain(build("shared_bottom"), losses.CrossEntropyLoss(TASKS), make("pcgrad"))
    trained.model.over_arch.towers.towers[0].output.weight.data.mul_(1e30)
    trained.model.over_arch.towers.towers[0].output.bias.data.fill_(0)
    trained.model.over_arch.bottom.get_parameter("_mlp.0._linear.bias").data.zero_()
    assert trained.eval()(batch(12))[0].isfinite()
    assert not trained.train()(batch(12))[0].isfinite()
