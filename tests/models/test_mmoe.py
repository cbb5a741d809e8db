"""MMoE, against its equations."""

import pytest

from tests.models.expert_archs import (
    IN,
    SIZES,
    T,
    assert_gate_of_equal_experts_does_not_matter,
    assert_is_mixture_of_experts,
    every_gate,
)
from tests.modules.parameters import randomized
from torchrec_mtl.errors import InputError
from torchrec_mtl.models import MMoEArch


@every_gate
@pytest.mark.parametrize("num_experts", [3, 4, 5, 8])
@pytest.mark.parametrize("sizes", [(7,), (7, 6), (5, 7, 6)], ids=len)
def test_matches_the_equations(sizes, num_experts, gate):
    arguments = {"num_experts": num_experts, "expert_layer_sizes": sizes, "tower_layer_sizes": (5, 4), **gate}
    assert_is_mixture_of_experts(randomized(MMoEArch(IN, T, **arguments)))


@every_gate
def test_the_gate_of_equal_experts_does_not_matter(gate):
    assert_gate_of_equal_experts_does_not_matter(randomized(MMoEArch(IN, T, num_experts=4, **SIZES, **gate)))


def test_no_experts_raise():
    with pytest.raises(InputError, match=r"`num_experts` \(=0\) must be at least 1"):
        MMoEArch(IN, T, num_experts=0)
