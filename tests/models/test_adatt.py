"""AdaTT, against its equations."""

import pytest
import torch

from tests.models.expert_archs import every_gate, inputs
from tests.modules import parameters
from tests.modules.parameters import assert_close, randomized
from tests.oracles import adatt
from torchrec_mtl.errors import InputError
from torchrec_mtl.models import AdaTTArch
from torchrec_mtl.modules import DSelectK

IN, T = 10, 3


def make(layer_sizes=(7, 6), tower_layer_sizes=(5,), **arguments):
    return randomized(AdaTTArch(IN, T, layer_sizes=layer_sizes, tower_layer_sizes=tower_layer_sizes, **arguments))


@every_gate
@pytest.mark.parametrize("native_experts", [True, False])
@pytest.mark.parametrize(("num_task_experts", "num_shared_experts"), [(1, 0), (1, 1), (1, 2), (2, 0), (3, 1)])
@pytest.mark.parametrize("layer_sizes", [(6,), (7, 6, 5)], ids=len)
def test_matches_the_equations(layer_sizes, num_task_experts, num_shared_experts, native_experts, gate):
    numbers = {"num_task_experts": num_task_experts, "num_shared_experts": num_shared_experts}
    arch = make(layer_sizes, **numbers, native_experts=native_experts, **gate)
    params = {
        "layers": [parameters.fusion_layer(layer) for layer in arch.layers],
        "towers": parameters.towers(arch.towers),
    }
    assert_close(arch(inputs()), adatt.adatt(inputs().numpy(), params))


def test_a_task_expert_reaches_every_task():
    """In every level, where PLE's reaches its own task."""
    for layer in (0, 1):
        arch = make()
        before = arch(inputs())
        with torch.no_grad():
            arch.layers[layer].experts[0].biases[-1].add_(1.0)
        assert (arch(inputs()) != before).any(0).all()


def test_one_expert_a_unit_is_added_as_it_is():
    """The weights of native experts are learnt as soon as a unit has two."""
    learnt = {(1, 0): False, (1, 1): False, (2, 0): True, (1, 2): True}
    for (num_task_experts, num_shared_experts), expected in learnt.items():
        arch = make(num_task_experts=num_task_experts, num_shared_experts=num_shared_experts)
        assert all((layer.native is not None) == expected for layer in arch.layers)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"gate": DSelectK(num_selected=7)}, r"`num_selected` \(=7\) must be from 1 to the number of .* \(=6\)"),
        ({"num_task_experts": 0}, r"`num_task_experts` \(=0\) must be at least 1"),
        ({"num_shared_experts": -1}, r"`num_shared_experts` \(=-1\) must be at least 0"),
        ({"layer_sizes": ()}, r"`layer_sizes` \(=\[\]\) must have at least one layer"),
    ],
)
def test_wrong_arguments_raise(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        AdaTTArch(IN, T, **arguments)
