"""TAFE's representation generator and the self-attention of its ablation, against the equations."""

import pytest

from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import tafe
from torchrec_mtl.errors import InputError
from torchrec_mtl.modules import RepresentationGenerator, SelfAttentionStack

B, F, D, K, L = 3, 5, 6, 4, 3


@pytest.mark.parametrize("residual", ["input", "query", "none"])
@pytest.mark.parametrize("selector", ["shared", "per_layer"])
def test_generator_matches_tafe_equations_14_to_20(residual, selector):
    module = randomized(RepresentationGenerator(F, D, L, 2, K, selector, (7,), residual=residual))
    x = randn(B, F, D)
    layers = parameters.generator_layers(module)
    params = {"selectors": [parameters.mlp(s) for s in module.selectors], "layers": layers}
    for sample, fields in enumerate(x.numpy()):
        inputs = fields
        selections = tafe.selections(fields, params, gamma=10.0, selector_kind=selector)
        for i, layer in enumerate(layers):
            inputs = tafe.asrg(inputs, selections[i], layer, 2, residual, first=i == 0)
            assert_close(module(x)[i][sample], inputs)


def test_stack_matches_the_self_attention_of_the_ablation():
    module = randomized(SelfAttentionStack(D, L, num_heads=2))
    x = randn(B, F, D)
    for sample, fields in enumerate(x.numpy()):
        inputs = fields
        for i, layer in enumerate(parameters.self_attention_layers(module)):
            inputs = tafe.self_attention_layer(inputs, layer, 2)
            assert_close(module(x)[i][sample], inputs)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_layers": 0}, r"`num_layers` \(=0\) must be at least 1"),
        ({"num_heads": 4}, r"`num_heads` \(=4\) must divide `embedding_dim` \(=6\)"),
        ({"selector": "each"}, r"`selector` \(='each'\) must be one of"),
        ({"residual": "sum"}, r"`residual` \(='sum'\) must be one of"),
    ],
)
def test_wrong_arguments_raise(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        RepresentationGenerator(F, D, **arguments)
