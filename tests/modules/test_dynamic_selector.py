"""TAFE's dynamic selector: its equations, and the schedule that moves with the training's steps."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.utils.checkpoint import checkpoint
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper

from tests import processes
from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import common, tafe
from torchrec_mtl.errors import InputError
from torchrec_mtl.modules import DynamicSelector, SmoothStepSchedule, advance_schedules, smooth_step

B, F, D, K = 3, 5, 6, 4


@pytest.mark.parametrize("gamma", [10.0, 1.0, 1e-3])
def test_smooth_step_matches_tafe_equation_16(gamma):
    ends = torch.tensor([-1e6, -gamma / 2, gamma / 2, 1e6], dtype=torch.float64)
    x = torch.cat([torch.linspace(-1, 1, 101, dtype=torch.float64) * gamma, ends])
    assert_close(smooth_step(x, gamma), tafe.smooth_step(x.numpy(), gamma), atol=1e-12)
    assert smooth_step(x, gamma)[-4:].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("step", [0, 1, 20_000, 49_995, 49_996, 1_000_000])
def test_selector_matches_tafe_equations_14_to_16(step):
    module = randomized(DynamicSelector(F * D, K, layer_sizes=(7, 3)))
    module.step.fill_(step)
    x, gamma = randn(B, F, D), tafe.gamma_schedule(step)
    assert module.gamma().item() == pytest.approx(gamma, rel=1e-12)
    logits = common.per_sample(tafe.selector, x.numpy(), layers=parameters.mlp(module))
    assert_close(module(x.flatten(1)), tafe.smooth_step(logits, gamma), atol=1e-12)


def test_schedule_reaches_its_end_exactly():
    selector, widths = DynamicSelector(6, 4, schedule=SmoothStepSchedule(start=1.0, rate=0.5, end=0.25)), []
    for _ in range(4):
        widths.append(selector.gamma().item())
        advance_schedules(selector)
    assert widths == [1.0, 0.5, 0.25, 0.25]


def keyed(parameters):
    """Adam in two wrappers, as in TorchRec's training loops."""
    named = {str(i): p for i, p in enumerate(parameters)}
    return CombinedOptimizer([("dense", KeyedOptimizerWrapper(named, lambda p: torch.optim.Adam(p, lr=0.1)))])


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def sharded(parameters):
    return ZeroRedundancyOptimizer(parameters, torch.optim.SGD, lr=0.1)


def take_steps(model, parameters, make_optimizer, num_steps=3):
    optimizer = make_optimizer(list(parameters))
    for _ in range(num_steps):
        optimizer.zero_grad()
        model(torch.randn(3, 6)).sum().backward()
        optimizer.step()
        advance_schedules(model)


@pytest.mark.parametrize("make_optimizer", [sgd, keyed])
def test_schedule_moves_once_a_step_with_any_optimizer(make_optimizer):
    model = nn.Sequential(DynamicSelector(6, 4, layer_sizes=(5,)))
    take_steps(model, model.parameters(), make_optimizer)
    assert model[0].step == 3


def step_with_a_sharded_optimizer() -> None:
    model = DynamicSelector(6, 4, layer_sizes=(5,))
    take_steps(model, model.parameters(), sharded)
    assert model.step == 3


@pytest.mark.slow
def test_schedule_is_equal_on_ranks_that_step_different_parameters():
    processes.run(step_with_a_sharded_optimizer, 2)


@pytest.mark.parametrize("frozen", [True, False])
def test_schedule_moves_without_the_bias(frozen):
    """The bias is frozen, or left out of the optimizer."""
    model = DynamicSelector(6, 4, layer_sizes=(5,))
    model.output.bias.requires_grad_(not frozen)
    parameters = [p for p in model.parameters() if p is not model.output.bias]
    take_steps(model, model.parameters() if frozen else parameters, sgd)
    assert model.step == 3


def test_only_advance_schedules_moves_the_schedule():
    """Evaluation, a backward pass with recomputation and an optimizer step leave it where it is."""
    selector = DynamicSelector(6, 4)
    optimizer = sgd(selector.parameters())
    selector.eval()(torch.randn(3, 6))
    checkpoint(selector.train(), torch.randn(3, 6), use_reentrant=False).sum().backward()
    optimizer.step()
    assert selector.step == 0


def test_a_compiled_module_beside_its_original_moves_once():
    selector = DynamicSelector(6, 4)
    compiled = torch.compile(selector, backend="eager")
    advance_schedules(nn.Sequential(compiled, selector))
    assert selector.step == 1


def test_copies_move_independently():
    original = DynamicSelector(6, 4)
    for twin in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        advance_schedules(twin)
        assert (original.step, twin.step) == (0, 1)


def test_any_module_with_the_method_is_advanced():
    seen = []

    class Scheduled(nn.Module):
        def advance_schedule(self, num_steps=None):
            seen.append(num_steps)

    advance_schedules(nn.Sequential(nn.Linear(2, 2), Scheduled()), 7)
    assert seen == [7]


@pytest.mark.parametrize("schedule", [SmoothStepSchedule(), "run"])
def test_schedule_is_saved_and_restored(schedule):
    selector, other = (DynamicSelector(6, 4, schedule=schedule) for _ in range(2))
    for _ in range(3):
        advance_schedules(selector, 10)
    assert not torch.equal(other.gamma(), selector.gamma())
    other.load_state_dict(selector.state_dict())
    assert other.step == 3
    assert torch.equal(other.gamma(), selector.gamma())
    other.reset_parameters()
    assert other.gamma() == 10


@pytest.mark.parametrize("num_steps", [1, 3, 7, 840, 1_000_003])
def test_a_schedule_of_the_run_ends_with_the_last_step(num_steps):
    start, _, end = SmoothStepSchedule()
    selector = DynamicSelector(6, 4, schedule="run")
    assert selector.gamma() == start
    selector.step.fill_(num_steps - 2)
    for expected in (1 / num_steps, 0, 0):
        advance_schedules(selector, num_steps)
        assert selector.gamma().item() == pytest.approx(end + (start - end) * expected, rel=1e-9)
    assert selector.gamma().item() == end


def test_a_schedule_of_the_run_is_linear():
    selector, widths = DynamicSelector(6, 4, schedule="run"), []
    for _ in range(5):
        widths.append(selector.gamma().item())
        advance_schedules(selector, 4)
    assert widths == pytest.approx([10, 7.50025, 5.0005, 2.50075, 0.001])
    start, rate, end = selector.per_step()
    assert [max(start - rate * step, end) for step in range(5)] == pytest.approx(widths)


def test_a_schedule_of_the_run_needs_the_number_of_steps():
    selector = DynamicSelector(6, 4, schedule="run")
    with pytest.raises(InputError, match=r"`schedule` \(='run'\) needs the run's steps: give `advance_schedules` its"):
        advance_schedules(selector)
    with pytest.raises(InputError, match=r"`num_steps` \(=0\) must be at least 1"):
        advance_schedules(selector, 0)
    assert selector.step == 0


def test_only_a_schedule_of_the_run_stores_the_number_of_steps():
    assert "num_steps" not in DynamicSelector(6, 4).state_dict()
    assert "num_steps" in DynamicSelector(6, 4, schedule="run").state_dict()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_inducing_points": 0}, r"`num_inducing_points` \(=0\) must be at least 1"),
        ({"layer_sizes": (8, 0)}, r"`selector_layer_sizes` \(=\[8, 0\]\) must be widths of 1 to"),
        ({"schedule": "epoch"}, r"`schedule` \(='epoch'\) must be 'run' or have a `start`, a `rate` and an `end`"),
        ({"schedule": (1.0, 0.1, 0.0)}, "must have an `end` above 0"),
    ],
)
def test_wrong_arguments_raise(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        DynamicSelector(**{"in_features": 6, "num_inducing_points": 4, **arguments})
