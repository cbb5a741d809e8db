"""OMoE, MMoE and PLE against their equations, and against each other where they coincide."""

import numpy as np
import pytest
import torch

from tests.models.test_against_oracles import scrambled
from tests.modules import parameters
from tests.oracles import experts
from torchrec_mtl.errors import InputError
from torchrec_mtl.models import MMoEArch, OMoEArch, PLEArch
from torchrec_mtl.modules import DSelectK

B, IN, T = 4, 10, 3
GATES = [
    {},
    {"gate": DSelectK(gamma=6.0)},
    {"gate": DSelectK(num_selected=1, gamma=6.0)},
    {"gate": DSelectK(num_selected=3, per_example=False, gamma=2.0)},
]
SIZES = {"expert_layer_sizes": (7, 6), "tower_layer_sizes": (5,)}
every_gate = pytest.mark.parametrize("gate", GATES, ids=["softmax", "per_example", "one", "static"])


def inputs():
    return torch.randn(B, IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def logits(arch):
    return arch(inputs()).detach()


@every_gate
@pytest.mark.parametrize("num_experts", [3, 4, 5, 8])
@pytest.mark.parametrize("sizes", [(7,), (7, 6), (5, 7, 6)], ids=len)
@pytest.mark.parametrize("arch_class", [OMoEArch, MMoEArch])
def test_mixtures_are_their_equations(arch_class, sizes, num_experts, gate):
    arch = scrambled(
        arch_class(IN, T, num_experts=num_experts, expert_layer_sizes=sizes, tower_layer_sizes=(5, 4), **gate)
    )
    expected = experts.mixture_of_experts(inputs().numpy(), parameters.mixture(arch))
    np.testing.assert_allclose(logits(arch), expected, rtol=1e-11)


@every_gate
@pytest.mark.parametrize(("num_task_experts", "num_shared_experts"), [(0, 3), (1, 2), (2, 1), (3, 3)])
@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_ple_is_its_equations(num_layers, num_task_experts, num_shared_experts, gate):
    numbers = {"num_layers": num_layers, "num_task_experts": num_task_experts, "num_shared_experts": num_shared_experts}
    arch = scrambled(PLEArch(IN, T, **numbers, **SIZES, **gate))
    expected = experts.ple(inputs().numpy(), parameters.ple(arch))
    np.testing.assert_allclose(logits(arch), expected, rtol=1e-11)


@every_gate
def test_omoe_is_mmoe_whose_gates_are_one(gate):
    omoe, mmoe = (scrambled(arch(IN, T, num_experts=4, **SIZES, **gate)) for arch in (OMoEArch, MMoEArch))
    with torch.no_grad():
        mmoe.load_state_dict(
            {
                name: value.repeat(T, *[1] * (value.ndim - 1)) if name.startswith("mixture.gate.") else value
                for name, value in omoe.state_dict().items()
            }
        )
    torch.testing.assert_close(logits(mmoe), logits(omoe), rtol=1e-12, atol=0)


@every_gate
def test_ple_of_one_layer_without_task_experts_is_mmoe(gate):
    numbers = {"num_layers": 1, "num_task_experts": 0, "num_shared_experts": 4}
    ple = scrambled(PLEArch(IN, T, **numbers, **SIZES, **gate))
    mmoe = MMoEArch(IN, T, num_experts=4, **SIZES, **gate)
    state, layer = mmoe.double().state_dict(), ple.layers[0]
    for name in state:
        if name.startswith("mixture.gate."):
            of_tasks = [gate.get_parameter(name.removeprefix("mixture.gate.")) for gate in layer.gates]
            state[name] = torch.cat(of_tasks)
        elif name.startswith("mixture.experts."):
            state[name] = layer.shared_experts.get_parameter(name.removeprefix("mixture.experts."))
        else:
            state[name] = ple.get_parameter(name)
    mmoe.load_state_dict(state)
    torch.testing.assert_close(logits(mmoe), logits(ple), rtol=1e-12, atol=0)


@every_gate
@pytest.mark.parametrize(
    "arch_class",
    [
        lambda **gate: OMoEArch(IN, T, num_experts=4, **SIZES, **gate),
        lambda **gate: MMoEArch(IN, T, num_experts=4, **SIZES, **gate),
        lambda **gate: PLEArch(IN, T, num_layers=1, num_task_experts=1, num_shared_experts=3, **SIZES, **gate),
    ],
    ids=["omoe", "mmoe", "ple"],
)
def test_the_gate_of_equal_experts_does_not_matter(arch_class, gate):
    arch = scrambled(arch_class(**gate))
    with torch.no_grad():
        for name, parameter in arch.named_parameters():
            if "experts." in name:
                generator = torch.Generator().manual_seed(parameter.shape[1:].numel())
                one = torch.randn(parameter.shape[1:], generator=generator, dtype=torch.float64)
                parameter.copy_(one.expand_as(parameter))
        before = logits(arch)
        for name, parameter in arch.named_parameters():
            if "gate" in name:
                parameter.neg_()
    torch.testing.assert_close(logits(arch), before, rtol=1e-12, atol=1e-12)


def test_a_task_expert_of_ple_serves_others_only_through_the_shared_state():
    """In the last layer a task's experts are its own; before, the shared gate hands them on."""
    for layer, moved in [(1, [True, False, False]), (0, [True, True, True])]:
        arch = scrambled(PLEArch(IN, T, **SIZES))
        before = logits(arch)
        with torch.no_grad():
            arch.layers[layer].task_experts[0].biases[-1].add_(1.0)
        assert (logits(arch) != before).any(0).tolist() == moved


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: MMoEArch(IN, T, num_experts=0), r"`num_experts` \(=0\) must be at least 1"),
        (
            lambda: OMoEArch(IN, T, expert_layer_sizes=()),
            r"`expert_layer_sizes` \(=\[\]\) must have at least one layer",
        ),
        (lambda: DSelectK(num_selected=0), r"`num_selected` \(=0\) must be at least 1"),
        (
            lambda: PLEArch(IN, T, gate=DSelectK(num_selected=5)),
            r"`num_selected` \(=5\) must be from 1 to the number of experts of a gate \(=4\)",
        ),
        (lambda: PLEArch(IN, T, num_layers=0), r"`num_layers` \(=0\) must be at least 1"),
        (lambda: PLEArch(IN, T, num_task_experts=-1), r"`num_task_experts` \(=-1\) must be at least 0"),
        (lambda: PLEArch(IN, T, num_shared_experts=0), r"`num_shared_experts` \(=0\) must be at least 1"),
    ],
)
def test_a_wrong_argument_is_told(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()
