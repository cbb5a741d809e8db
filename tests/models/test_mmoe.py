"""MMoE, against its equations."""

import pytest

from tests.models import expert_archs
from tests.models.expert_archs import every_gate, make
from torchrec_mtl.models import MMoEArch


@every_gate
@pytest.mark.parametrize("num_experts", [3, 4, 5, 8])
@pytest.mark.parametrize("sizes", [(7,), (7, 6), (5, 7, 6)], ids=len)
def test_matches_the_equations(sizes, num_experts, gate):
    expert_archs.assert_is_mixture_of_experts(make(MMoEArch, sizes, (5, 4), num_experts=num_experts, **gate))


@every_gate
def test_the_gate_of_equal_experts_does_not_matter(gate):
    expert_archs.assert_gate_of_equal_experts_does_not_matter(make(MMoEArch, num_experts=4, **gate))
