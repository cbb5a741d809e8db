"""Attention with learnt projections, against the papers' equations."""

import pytest

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
