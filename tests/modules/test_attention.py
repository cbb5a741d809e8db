"""Attention with learnt projections, against the papers' equations."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import bpcm, common, tafe
from torchrec_mtl.errors import InputError
from torchrec_mtl.modules import Attention

B, F, D, K = 3, 5, 6, 4


@pytest.mark.parametrize("num_heads", [1, 2, 3])
def test_matches_bpcm_equations_2_and_3(num_heads):
    module = randomized(Attention(D, num_heads))
    x, weights = randn(B, F, D), parameters.attention(module)
    expected = common.per_sample(bpcm.self_attention, x.numpy(), weights=weights, num_heads=num_heads)
    assert_close(module(x, x), expected)


@pytest.mark.parametrize("num_heads", [1, 2, 3])
def test_with_an_output_projection_matches_tafe_equations_18_and_19(num_heads):
    module = randomized(Attention(D, num_heads, output_projection=True))
    queries, inputs = randn(B, K, D), randn(B, F, D, seed=1)
    weights = {**parameters.attention(module), "out": parameters.array(module.output.weight)}

    def attend(query, memory):
        return tafe.projected_attention(query @ weights["query"].T, memory, weights, num_heads)

    assert_close(module(queries, inputs), common.per_sample(attend, queries.numpy(), inputs.numpy()))


@pytest.mark.parametrize("num_heads", [0, 4])
def test_heads_that_do_not_divide_the_dimension_raise(num_heads):
    with pytest.raises(InputError, match=rf"`num_heads` \(={num_heads}\) must divide `embedding_dim` \(=6\)"):
        Attention(D, num_heads)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def _double_by_class(layer):
    class DoubledLinear(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    layer.__class__ = DoubledLinear


WAYS_TO_DOUBLE = {
    "a parametrization": lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()),
    "a hook": lambda layer: layer.register_forward_hook(lambda _, __, output: 2 * output),
    "a hook before": lambda layer: layer.register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],)),
    "a subclass": _double_by_class,
}


@pytest.mark.parametrize("num_heads", [1, 3])
@pytest.mark.parametrize("layer", ["query", "key", "value"])
@pytest.mark.parametrize("way", WAYS_TO_DOUBLE)
def test_a_changed_layer_is_not_passed_over(way, layer, num_heads):
    """Quantisation, LoRA, pruning and observers change layers in these ways."""
    module, expected = (randomized(Attention(D, num_heads)) for _ in range(2))
    queries, inputs = randn(B, K, D), randn(B, F, D, seed=1)
    WAYS_TO_DOUBLE[way](getattr(module, layer))
    with torch.no_grad():
        getattr(expected, layer).weight.mul_(2)
    torch.testing.assert_close(module(queries, inputs), expected(queries, inputs))


def test_pruned_layers_train():
    module, x = randomized(Attention(D, 2)), randn(B, F, D)
    for layer in (module.query, module.key, module.value):
        prune.random_unstructured(layer, "weight", 0.5)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = module(x, x).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]
