"""Cross-stitch networks, against their paper's equation."""

import pytest

from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import chains, common
from torchrec_mtl.models import CrossStitchArch


@pytest.mark.parametrize("num_tasks", [1, 2, 4])
@pytest.mark.parametrize("sizes", [(), (6,), (7, 5)])
@pytest.mark.parametrize("stitch", ["channel", "layer"])
def test_matches_the_equation(num_tasks, sizes, stitch):
    arch = randomized(CrossStitchArch(10, num_tasks, layer_sizes=sizes, tower_layer_sizes=(4,), stitch=stitch))
    layers = [parameters.cross_stitch_layer(layer) for layer in arch.layers]
    params, x = {"layers": layers, "towers": parameters.towers(arch.towers)}, randn(4, 10)
    assert_close(arch(x), common.per_sample(chains.cross_stitch, x.numpy(), parameters=params))
