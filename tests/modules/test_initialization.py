"""Initial weights of every model."""

import pytest
import torch
from torch import nn

from tests.support import MODELS, build
from torchrec_mtl.modules import Experts, RepresentationGenerator, TaskAdapter
from torchrec_mtl.modules.initialization import reset_attention


@pytest.mark.parametrize("name", sorted(MODELS))
def test_linear_layers_start_he_normal_with_zero_biases(name):
    """All weights, each divided by its standard deviation, have the second and fourth moment of a standard normal."""
    torch.manual_seed(0)
    model = build(name)
    drawn = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            drawn.append(module.weight.flatten() * (module.in_features / 2) ** 0.5)
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, Experts):
            drawn += [(weight * (weight.shape[-1] / 2) ** 0.5).flatten() for weight in module.weights]
            assert not any(bias.any() for bias in module.biases)
        elif isinstance(module, RepresentationGenerator | TaskAdapter):
            squares = (module.key_weight, module.value_weight, module.output_weight)
            drawn += [(weight * (weight.shape[-1] / 2) ** 0.5).flatten() for weight in squares]
    values = torch.cat(drawn).double()
    assert len(values) > 100
    error = len(values) ** -0.5
    assert abs(values.square().mean() - 1) < 6 * error
    assert abs(values.pow(4).mean() - 3) < 6 * 96**0.5 * error


def test_learnt_queries_start_xavier_uniform_and_norms_as_the_identity():
    torch.manual_seed(0)
    layers, points, dim = 3, 200, 40
    queries, key, value, output = (torch.empty(layers, rows, dim) for rows in (points, dim, dim, dim))
    weight, bias = torch.empty(layers, dim), torch.empty(layers, dim)
    reset_attention(queries, key, value, output, weight, bias)
    bound = (6 / (points + dim)) ** 0.5
    assert 0.999 * bound < queries.abs().max() <= bound
    assert queries.var() == pytest.approx(bound**2 / 3, rel=0.05)
    assert weight.eq(1).all()
    assert bias.eq(0).all()
