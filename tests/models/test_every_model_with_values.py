"""Every model on a funnel with values: outputs, starts, training, tracing, balancing."""

import pytest
import torch

from tests.support import MODELS, batch, build, feature_arch
from torchrec_mtl import ZILN, Classes, MultiTaskTrain, Ordinal, Quantile, SquaredError, Task, TaskForest
from torchrec_mtl.errors import InputError
from torchrec_mtl.losses.values import loss_of_all
from torchrec_mtl.models import SharedBottom
from torchrec_mtl.modules import LabelStatistics, Tower, give_heads, start_values
from torchrec_mtl.modules.heads import ValueHead, predicted
from torchrec_mtl.systems import SYSTEMS
from torchrec_mtl.training.balancing import BALANCINGS, make_balancing

TASKS = TaskForest(
    Task("click"),
    Task("buy", after="click"),
    Task("spend", after="buy", kind=ZILN()),
    Task("dwell", after="click", kind=Quantile((0.5, 0.9))),
    Task("age", kind=SquaredError()),
    Task("plan", after="buy", kind=Classes(3)),
    Task("stars", after="buy", kind=Ordinal(5)),
)
STATISTICS = {
    "spend": LabelStatistics(90, 30.0, 20.0, 60, 3.0, 0.5),
    "dwell": LabelStatistics(90, 10.0, 5.0, 90, 2.0, 0.5),
    "age": LabelStatistics(90, 40.0, 10.0, 90, 3.6, 0.3),
    "plan": LabelStatistics(96, 1.0, 1.0, 90, 0.5, 0.5, (29, 49, 18)),
    "stars": LabelStatistics(95, 1.0, 1.0, 90, 0.5, 0.5, (9, 19, 29, 29, 9)),
}
every_model = pytest.mark.parametrize("name", MODELS)


def rows_of(size=32):
    rows = batch(size)
    generator = torch.Generator().manual_seed(1)
    happened = (torch.rand(size, 2, generator=generator) < 0.8).float().cumprod(1)
    values = torch.randn(size, 3, generator=generator) * torch.tensor([20.0, 5.0, 10.0]) + 40
    values[::3, 0] = 0
    classes = torch.stack([torch.arange(size) % 3, torch.arange(size) % 5], dim=1)
    rows.labels = torch.cat([happened, values, classes], dim=1)
    return rows


def train_model(name, balancing=None):
    torch.manual_seed(0)
    system = SYSTEMS[name]
    model, loss = build(name, tasks=TASKS), loss_of_all(system.loss, TASKS, **system.loss_args)
    start_values(model, STATISTICS)
    loss.start(STATISTICS)
    return MultiTaskTrain(model, loss, balancing)


@every_model
def test_it_learns_values_beside_the_funnel(name):
    trained, rows = train_model(name), rows_of()
    optimizer = torch.optim.Adam(trained.parameters(), 0.02)
    losses = []
    for _ in range(25):
        loss, (_, logits, labels) = trained(rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert logits.shape == (32, TASKS.num_outputs)
    assert labels.shape == (32, 7)
    assert losses[-1] < losses[0]
    assert 0 < losses[0] < 20 * len(TASKS)  # not in raw units
    assert (logits[:, 5] <= logits[:, 6]).all()
    assert float((logits[:, 7] - 40).abs().mean()) < 40  # in raw units


@every_model
def test_the_funnel_starts_from_its_rates_and_values_from_their_labels(name):
    """By what towers put out whose last weights are 0."""
    model, rows = build(name, tasks=TASKS).eval(), rows_of(3)
    model.start_from_base_rates(torch.tensor([0.5, 0.1]))
    start_values(model, STATISTICS)
    for tower in (module for module in model.modules() if isinstance(module, Tower)):
        last = tower.output if tower.is_binary else tower.output.linear
        torch.nn.init.zeros_(last.weight)
    outputs = model(rows.dense_features, rows.sparse_features)[0]
    torch.testing.assert_close(outputs[:2].sigmoid(), torch.tensor([0.5, 0.1]))
    expected = torch.tensor([0.6769, 3.0, 0.5, 10.0, 16.4078, 40.0])  # log(61 / 31), log of spend, dwell, age
    torch.testing.assert_close(outputs[2:8], expected, rtol=1e-4, atol=1e-4)
    of_classes = zip(TASKS.tasks[5:], TASKS.outputs[5:], strict=True)
    plan, stars = (predicted(task.kind, outputs[None, columns])[0] for task, columns in of_classes)
    torch.testing.assert_close(plan, torch.tensor([30, 50, 19]) / 99, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(stars, torch.tensor([10, 20, 30, 30, 10]) / 100, rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match=r"`base_rates` \(=.*\) must be one per tower"):
        model.start_from_base_rates(torch.full((7,), 0.1))


@pytest.mark.parametrize("name", ["esmm", "escm2_dr", "mmoe", "single_task", "tafe"])
def test_a_model_with_values_is_traced(name):
    model, rows = build(name, tasks=TASKS).eval(), rows_of(7)
    start_values(model, STATISTICS)
    inputs = rows.dense_features, rows.sparse_features

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, qualified_name):
            return type(module).__name__ in ("FeatureArch", "EmbeddingBagCollection") or super().is_leaf_module(
                module, qualified_name
            )

    traced = torch.fx.GraphModule(model, Tracer().trace(model))
    torch.testing.assert_close(traced(*inputs), model(*inputs))


@pytest.mark.parametrize("method", BALANCINGS)
def test_a_balancing_sees_one_loss_a_task(method):
    given = {"weights": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]} if method == "static" else {}
    if method in ("uncertainty", "dwa", "gradnorm", "famo"):
        with pytest.raises(InputError, match=r"must be another for 'spend': the loss of `ZILN` can be below 0"):
            make_balancing(method, TASKS, given)
        return
    trained, rows = train_model("mmoe", make_balancing(method, TASKS, given)), rows_of()
    loss, _ = trained(rows)
    loss.backward()
    plain, _ = train_model("mmoe")(rows)
    torch.testing.assert_close(loss, plain)
    assert all(parameter.grad.isfinite().all() for parameter in trained.parameters() if parameter.grad is not None)


def test_static_weights_are_those_of_the_tasks_losses():
    weights = [1.0, 0.0, 3.0, 0.5, 2.0, 1.5, 2.5]
    balanced = train_model("shared_bottom", make_balancing("static", TASKS, {"weights": weights}))
    weighted = MultiTaskTrain(balanced.model, loss_of_all(SYSTEMS["shared_bottom"].loss, TASKS, task_weights=weights))
    weighted.loss.start(STATISTICS)
    rows, found = rows_of(), []
    for model in (balanced, weighted):
        model.zero_grad()
        model(rows)[0].backward()
        found.append([parameter.grad.clone() for parameter in balanced.model.parameters()])
    torch.testing.assert_close(*found)


def test_heads_made_on_meta_are_reset():
    """As FSDP does it."""
    model = build("mmoe", device="meta", tasks=TASKS).to_empty(device="cpu")
    heads = [module for module in model.modules() if isinstance(module, ValueHead)]
    for head in heads:
        for module in (head, head.linear):
            module.reset_parameters()
        assert head.log_scale.eq(0).all()
        assert head.shift.eq(0).all()
        assert head(torch.randn(5, head.linear.in_features)).isfinite().all()
    assert len(heads) == len(TASKS.values)


def test_a_model_without_one_tower_a_task_says_so():
    model = SharedBottom(feature_arch(), TASKS.funnel)
    with pytest.raises(InputError, match=r"SharedBottomArch must have one `Tower` a task \(7\), not 2"):
        give_heads(model.over_arch, TASKS)
