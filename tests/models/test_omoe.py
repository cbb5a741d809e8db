"""OMoE, against its equations and against MMoE."""

import pytest
import torch

from tests.models import expert_archs
from tests.models.expert_archs import every_gate, logits, make
from torchrec_mtl.models import MMoEArch, OMoEArch


@every_gate
@pytest.mark.parametrize("num_experts", [3, 4, 5, 8])
@pytest.mark.parametrize("sizes", [(7,), (7, 6), (5, 7, 6)], ids=len)
def test_matches_the_equations(sizes, num_experts, gate):
    expert_archs.assert_is_mixture_of_experts(make(OMoEArch, sizes, (5, 4), num_experts=num_experts, **gate))


@every_gate
def test_equals_mmoe_with_the_same_gate_for_every_task(gate):
    omoe, mmoe = (make(arch, num_experts=4, **gate) for arch in (OMoEArch, MMoEArch))
    state = omoe.state_dict()
    for name, value in state.items():
        if name.startswith("mixture.gate."):
            state[name] = value.repeat(expert_archs.T, *[1] * (value.ndim - 1))
    mmoe.load_state_dict(state)
    torch.testing.assert_close(logits(mmoe), logits(omoe), rtol=1e-12, atol=0)


@every_gate
def test_the_gate_of_equal_experts_does_not_matter(gate):
    expert_archs.assert_gate_of_equal_experts_does_not_matter(make(OMoEArch, num_experts=4, **gate))
