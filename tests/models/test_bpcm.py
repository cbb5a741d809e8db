"""BPCM, against its paper's equations, options and ablations included."""

import pytest

from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import bpcm
from tests.support import TASKS
from torchrec_mtl.models import BPCMArch

B, F, D = 3, 5, 6


@pytest.mark.parametrize("over", ["embedding", "fields"])
@pytest.mark.parametrize("num_heads", [1, 2])
@pytest.mark.parametrize(
    ("arguments", "without"),
    [
        ({}, ()),
        ({"layer_norm": True}, ()),
        ({"attends_to": "both"}, ()),
        ({"attention": False}, ("attention",)),
        ({"aggregation": False}, ("aggregation",)),
        ({"gate": False}, ("gate",)),
        ({"conversion": False}, ("transition",)),
    ],
)
def test_matches_the_equations(over, num_heads, arguments, without):
    arch = randomized(
        BPCMArch(F, D, TASKS, num_heads=num_heads, tower_layer_sizes=(7, 4), aggregation_over=over, **arguments)
    )
    params = {
        "feature_towers": [parameters.feature_tower(tower) for tower in arch.feature_towers],
        "transitions": [parameters.conversion(step) for step in arch.conversions],
        "towers": parameters.towers(arch.towers),
    }
    fields = randn(B, F, D, seed=1)
    both = "attends_to" in arguments
    assert_close(arch(fields), bpcm.forward(fields.numpy(), params, num_heads, over, without, both))
