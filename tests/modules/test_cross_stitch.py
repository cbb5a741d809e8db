"""Cross-stitch layers, against their equation."""

import pytest
import torch

from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import chains, common
from torchrec_mtl.errors import InputError
from torchrec_mtl.modules import CrossStitchLayer, CrossStitchUnit


@pytest.mark.parametrize("num_tasks", [1, 2, 4])
@pytest.mark.parametrize("per", ["channel", "layer"])
def test_a_unit_starts_as_a_convex_combination(num_tasks, per):
    x = torch.randn(1, num_tasks, 3).expand(5, -1, -1)
    mixed = CrossStitchUnit(num_tasks, 3, per)(x)
    others = x.sum(1, keepdim=True) - x
    expected = x if num_tasks == 1 else 0.9 * x + 0.1 * others / (num_tasks - 1)
    torch.testing.assert_close(mixed, expected)
    same = torch.ones(2, num_tasks, 3)
    torch.testing.assert_close(CrossStitchUnit(num_tasks, 3, per)(same), same)


@pytest.mark.parametrize("num_tasks", [1, 2, 4])
@pytest.mark.parametrize("per", ["channel", "layer"])
def test_a_layer_matches_equation_1(num_tasks, per):
    module = randomized(CrossStitchLayer(num_tasks, 6, 5, per))
    networks, alphas = parameters.cross_stitch_layer(module)
    inputs = randn(num_tasks, 3, 6)
    expected = common.per_sample(lambda *x: chains.cross_stitch_layer(x, networks, alphas), *inputs.numpy())
    assert_close(torch.stack(module(inputs.unbind()), dim=1), expected)


def test_an_unknown_stitch_raises():
    with pytest.raises(InputError, match=r"`stitch` \(='unit'\) must be one of \['channel', 'layer'\]"):
        CrossStitchUnit(2, 3, per="unit")
