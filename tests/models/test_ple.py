"""PLE, against its equations and against MMoE."""

import pytest
import torch

from tests.models import expert_archs
from tests.models.expert_archs import every_gate, inputs, logits, make
from tests.modules import parameters
from tests.modules.parameters import assert_close
from tests.oracles import experts
from torchrec_mtl.errors import InputError
from torchrec_mtl.models import MMoEArch, PLEArch
from torchrec_mtl.modules import DSelectK


@every_gate
@pytest.mark.parametrize(("num_task_experts", "num_shared_experts"), [(0, 3), (1, 2), (2, 1), (3, 3)])
@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_matches_the_equations(num_layers, num_task_experts, num_shared_experts, gate):
    numbers = {"num_layers": num_layers, "num_task_experts": num_task_experts, "num_shared_experts": num_shared_experts}
    arch = make(PLEArch, **numbers, **gate)
    layers = [parameters.extraction_layer(layer) for layer in arch.layers]
    params = {"layers": layers, "towers": parameters.towers(arch.towers)}
    assert_close(arch(inputs()), experts.ple(inputs().numpy(), params))


@every_gate
def test_one_layer_without_task_experts_equals_mmoe(gate):
    ple = make(PLEArch, num_layers=1, num_task_experts=0, num_shared_experts=4, **gate)
    mmoe = make(MMoEArch, num_experts=4, **gate)
    state, layer = mmoe.state_dict(), ple.layers[0]
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
def test_the_gate_of_equal_experts_does_not_matter(gate):
    arch = make(PLEArch, num_layers=1, num_task_experts=1, num_shared_experts=3, **gate)
    expert_archs.assert_gate_of_equal_experts_does_not_matter(arch)


def test_a_task_expert_reaches_other_tasks_only_through_the_shared_state():
    """In the last layer only the expert's task reads it; before, the shared gate passes it on."""
    for layer, moved in [(1, [True, False, False]), (0, [True, True, True])]:
        arch = make(PLEArch)
        before = logits(arch)
        with torch.no_grad():
            arch.layers[layer].task_experts[0].biases[-1].add_(1.0)
        assert (logits(arch) != before).any(0).tolist() == moved


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"gate": DSelectK(num_selected=5)}, r"`num_selected` \(=5\) must be from 1 to the number of .* \(=4\)"),
        ({"num_layers": 0}, r"`num_layers` \(=0\) must be at least 1"),
    ],
)
def test_wrong_arguments_raise(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        PLEArch(10, 3, **arguments)
