"""MoSE, against its equations."""

import pytest
import torch

from tests.models.expert_archs import every_gate
from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import common, mose
from torchrec_mtl.errors import InputError
from torchrec_mtl.models import MoSEArch
from torchrec_mtl.modules import DSelectK

F, D = 5, 4


def make(num_tasks=3, tower_layer_sizes=(), **arguments):
    return randomized(MoSEArch(F, D, num_tasks, hidden_size=6, tower_layer_sizes=tower_layer_sizes, **arguments))


@every_gate
@pytest.mark.parametrize(("num_tasks", "tower_layer_sizes"), [(1, ()), (3, (5,))])
def test_matches_the_equations(num_tasks, tower_layer_sizes, gate):
    arch, x = make(num_tasks, tower_layer_sizes, num_experts=4, **gate), randn(3, F, D)
    assert_close(arch(x), common.per_sample(mose.mose, x.numpy(), params=parameters.mose(arch)))


def test_the_order_of_the_fields_matters():
    arch, x = make(), randn(3, F, D)
    with torch.no_grad():
        arch.gate.linear.weight.zero_()  # which reads all fields at once
    assert (arch(x.flip(1)) - arch(x)).abs().min() > 1e-3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"gate": DSelectK(num_selected=9)}, r"`num_selected` \(=9\) must be from 1 to the number of .* \(=4\)"),
        ({"num_experts": 0}, r"`num_experts` \(=0\) must be at least 1"),
        ({"hidden_size": 0}, r"`hidden_size` \(=0\) must be at least 1"),
    ],
)
def test_wrong_arguments_raise(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        MoSEArch(F, D, 3, **arguments)
