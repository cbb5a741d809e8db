"""BPCM's states by one operation and by its modules are the same, and the modules are called where they must be."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from torchrec_mtl import Task, TaskForest
from torchrec_mtl.errors import InputError
from torchrec_mtl.models.bpcm import BPCMArch
from torchrec_mtl.modules import MLP

pytestmark = pytest.mark.usefixtures("kernel")

TASKS = TaskForest(Task("click"), Task("like", after="click"), Task("cart", after="click"), Task("buy", after="cart"))


class Called(TorchDispatchMode):
    """Whether the operation is called."""

    operation = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operation |= "behavior_conversion" in str(function)
        return function(*args, **(kwargs or {}))


def arch(dtype=torch.float64, **sizes):
    torch.manual_seed(0)
    made = BPCMArch(5, 8, TASKS, **{"num_heads": 2, "aggregation_size": 6, **sizes})
    return made.to(dtype)


def by_modules(model):
    """A copy with a hook that does nothing."""
    model = copy.deepcopy(model)
    model.conversions[0].register_forward_hook(lambda *_: None)
    return model


def run(model, fields, seed=0):
    torch.manual_seed(seed)
    with Called() as called:
        logits = model(fields)
    return logits, called.operation


def fields(dtype=torch.float64):
    return torch.randn(19, 5, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("sizes", [{}, {"num_heads": 1, "aggregation_size": None}])
def test_both_ways_give_the_same_logits_and_gradients(sizes):
    model = arch(**sizes).eval()  # without dropout
    results = []
    for each, expected in ((model, True), (by_modules(model), False)):
        inputs = fields().requires_grad_()
        logits, called = run(each, inputs)
        assert called == expected
        gradients = torch.autograd.grad(logits.sin().sum(), [inputs, *each.parameters()])
        results.append([logits, *gradients])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_dropout_follows_torchs_seed_and_is_for_training_alone():
    model = arch(message_dropout=0.5)
    first, same, other = (run(model, fields(), seed)[0] for seed in (3, 3, 4))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    torch.testing.assert_close(first[:, 0], other[:, 0])  # a click has no message
    model.eval()
    before = torch.get_rng_state()
    expected, _ = run(by_modules(model), fields())
    torch.testing.assert_close(run(model, fields())[0], expected, rtol=1e-10, atol=1e-12)
    torch.set_rng_state(before)
    model(fields())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_mean_over_seeds_is_that_of_modules():
    """A task's state is linear in the message's values, if scores do not depend on it."""
    model = arch(message_dropout=0.5, tower_layer_sizes=[])
    for step in model.conversions:
        nn.init.zeros_(step.attention.query.weight)
    expected, _ = run(copy.deepcopy(model).eval(), fields())
    draws = torch.stack([run(model, fields(), seed)[0].detach() for seed in range(400)])
    error = (draws.mean(0) - expected).abs() / (draws.std(0) / 20 + 1e-9)
    assert error.max() < 5


def test_16_bits_and_autocast_round_only_the_states():
    model, inputs = arch(torch.float32).eval(), fields(torch.float32)
    expected, _ = run(model, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        logits, called = run(model, inputs)
    assert called
    torch.testing.assert_close(logits.float(), expected, rtol=0.05, atol=0.02)
    logits, called = run(copy.deepcopy(model).bfloat16(), inputs.bfloat16())
    assert called
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, rtol=0.05, atol=0.05)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def _another_class(model):
    model.feature_towers[1].gate.organic = Doubled(8, 8, bias=False)


def _another_mlp(model):
    model.feature_towers[0].aggregation.mlp = nn.Sequential(MLP(8, [8]), nn.Tanh())


def _deeper_mlp(model):
    model.feature_towers[0].aggregation.mlp = MLP(8, [6, 8, 8])


def _wider_mlp(model):
    model.feature_towers[0].aggregation.mlp = MLP(8, [7, 8])


def _other_activation(model):
    model.feature_towers[0].aggregation.mlp._mlp[1]._activation_fn = torch.sigmoid


def _two_mlps(model):
    model.feature_towers[0].aggregation.mlp = nn.Sequential(MLP(8, [8]), MLP(8, [8]))


def _other_heads(model):
    model.conversions[0].attention.num_heads = 4


def _hook_on_a_tower(model):
    model.feature_towers[2].register_forward_hook(lambda *_: None)


def _hook_before_a_layer(model):
    model.conversions[1].attention.value.register_forward_pre_hook(lambda *_: None)


def _hook_on_gradients(model):
    model.feature_towers[0].register_full_backward_hook(lambda *_: None)


def _another_dropout(model):
    model.conversions[1].message.p = 0.2


def _all_dropped(model):
    for step in model.conversions:
        step.message.p = 1.0


def _one_in_evaluation(model):
    model.conversions[0].eval()


CHANGES = [
    _another_class,
    _another_mlp,
    _deeper_mlp,
    _wider_mlp,
    _other_activation,
    _two_mlps,
    _other_heads,
    _hook_on_a_tower,
    _hook_before_a_layer,
    _hook_on_gradients,
    _another_dropout,
    _all_dropped,
    _one_in_evaluation,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_module_is_called(change):
    model = arch().double()
    change(model)
    logits, called = run(model.double(), fields())
    assert not called
    assert torch.equal(logits, run(by_modules(model), fields())[0])


@pytest.mark.parametrize(
    "ablation",
    [
        "attention",
        "aggregation",
        "gate",
        "conversion",
        {"aggregation_over": "fields"},
        {"layer_norm": True},
        {"attends_to": "both"},
    ],
)
def test_other_towers_and_conversions_are_called_module_by_module(ablation):
    model = arch(**(ablation if isinstance(ablation, dict) else {ablation: False}))
    assert not run(model, fields())[1]


def test_the_environment_decides_as_for_attention(monkeypatch):
    monkeypatch.setenv("TORCHREC_MTL_ATTENTION", "reference")
    assert not run(arch(), fields())[1]
    monkeypatch.setenv("TORCHREC_MTL_ATTENTION", "cpp")
    assert run(arch(), fields())[1]
    monkeypatch.setenv("TORCHREC_MTL_ATTENTION", "c++")
    with pytest.raises(InputError, match="must be one of"):
        arch()(fields())


def test_a_traced_or_compiled_model_calls_its_modules():
    model = arch().eval()
    expected, _ = run(model, fields())
    traced = torch.fx.symbolic_trace(model)
    logits, called = run(traced, fields())
    assert not called
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    assert not any("behavior_conversion" in str(n.target) for n in torch.export.export(model, (fields(),)).graph.nodes)
