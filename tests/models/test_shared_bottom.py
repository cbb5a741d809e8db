"""Shared-Bottom, against its equation."""

import pytest

from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import common, experts
from torchrec_mtl.errors import InputError
from torchrec_mtl.models import SharedBottomArch


@pytest.mark.parametrize("sizes", [(7,), (7, 5)], ids=len)
def test_matches_the_equation(sizes):
    arch, x = randomized(SharedBottomArch(10, 3, bottom_layer_sizes=sizes, tower_layer_sizes=(4,))), randn(4, 10)
    params = {"bottom": parameters.mlp(arch.bottom), "towers": parameters.towers(arch.towers)}
    assert_close(arch(x), common.per_sample(experts.shared_bottom, x.numpy(), **params))


def test_a_bottom_without_a_layer_raises():
    with pytest.raises(InputError, match=r"`bottom_layer_sizes` \(=\[\]\) must have at least one layer"):
        SharedBottomArch(10, 3, bottom_layer_sizes=())
