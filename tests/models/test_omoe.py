"""OMoE, against its equations and against MMoE."""

import pytest
import torch

from tests.models.expert_archs import (
    IN,
    SIZES,
    T,
    assert_gate_of_equal_experts_does_not_matter,
    assert_is_mixture_of_experts,
    every_gate,
    logits,
)
from tests.modules.parameters import randomized
from torchrec_mtl.errors import InputError
from torchrec_mtl.models import MMoEArch, OMoEArch


@every_gate
@pytest.mark.parametrize("num_experts", [3, 4, 5, 8])
@pytest.mark.parametrize("sizes", [(7,), (7, 6), (5, 7, 6)], ids=len)
def test_matches_the_equations(sizes, num_experts, gate):
    arguments = {"num_experts": num_experts, "expert_layer_sizes": sizes, "tower_layer_sizes": (5, 4), **gate}
    assert_is_mixture_of_experts(randomized(OMoEArch(IN, T, **arguments)))


@every_gate
def test_equals_mmoe_with_the_same_gate_for_every_task(gate):
    omoe, mmoe = (randomized(arch(IN, T, num_experts=4, **SIZES, **gate)) for arch in (OMoEArch, MMoEArch))
    with torch.no_grad():
        mmoe.load_state_dict(
            {
                name: value.repeat(T, *[1] * (value.ndim - 1)) if name.startswith("mixture.gate.") else value
                for name, value in omoe.state_dict().items()
            }
        )
    torch.testing.assert_close(logits(mmoe), logits(omoe), rtol=1e-12, atol=0)


@every_gate
def test_the_gate_of_equal_experts_does_not_matter(gate):
    assert_gate_of_equal_experts_does_not_matter(randomized(OMoEArch(IN, T, num_experts=4, **SIZES, **gate)))


def test_experts_without_a_layer_raise():
    with pytest.raises(InputError, match=r"`expert_layer_sizes` \(=\[\]\) must have at least one layer"):
        OMoEArch(IN, T, expert_layer_sizes=())
