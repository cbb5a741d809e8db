"""MRAN, against its equations."""

import pytest
import torch

from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import common, mran
from torchrec_mtl.errors import InputError
from torchrec_mtl.models import MRANArch

F, D = 5, 6


def make(num_tasks=3, num_heads=2):
    return randomized(MRANArch(F, D, num_tasks, num_heads=num_heads, tower_layer_sizes=(4,)))


@pytest.mark.parametrize("num_tasks", [1, 3])
@pytest.mark.parametrize("num_heads", [1, 2, 3])
def test_matches_the_equations(num_heads, num_tasks):
    arch, x = make(num_tasks, num_heads), randn(4, F, D)
    params = parameters.mran(arch)
    assert_close(arch(x), common.per_sample(mran.mran, x.numpy(), params=params, num_heads=num_heads))


def test_a_task_takes_from_the_others():
    """Another row for one task changes what the others get of the features."""
    arch, x = make(), randn(4, F, D)
    before = arch.alignment(arch.relations(), x)
    with torch.no_grad():
        arch.relations.tasks[0] += 1.0
    assert ((arch.alignment(arch.relations(), x) - before).abs().amax((0, 2, 3)) > 1e-6).all()


def test_the_norm_keeps_what_a_task_weighs_up():
    """A field that a task weighs up keeps more of the norm than with even weights."""
    arch, features = make(num_heads=1), torch.ones(1, F, D, dtype=torch.float64)
    with torch.no_grad():
        arch.alignment.norm.weight.fill_(1.0)
        arch.alignment.norm.bias.fill_(0.0)
        arch.alignment.query.weight.copy_(torch.eye(D))
        arch.alignment.key.weight.copy_(torch.eye(D))
        features[0, 2] = 3.0
    of_task = {sign: arch.alignment(sign * torch.ones(1, D, dtype=torch.float64), features)[0, 0] for sign in (1, -1)}
    assert (of_task[1][2] > of_task[-1][2]).all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_heads": 4}, r"`num_heads` \(=4\) must divide `embedding_dim` \(=6\)"),
        ({"tower_layer_sizes": (0,)}, r"`tower_layer_sizes` \(=\[0\]\) must"),
    ],
)
def test_wrong_arguments_raise(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        MRANArch(F, D, 3, **arguments)
