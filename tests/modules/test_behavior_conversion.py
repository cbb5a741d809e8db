"""BPCM's behaviour pattern conversion, against its equations."""

import pytest

from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import bpcm, common
from torchrec_mtl.modules import BehaviorPatternConversion

B, F, D = 3, 5, 6


@pytest.mark.parametrize("attends_to", ["message", "both"])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("num_heads", [1, 2])
def test_matches_bpcm_equations_7_to_9(layer_norm, num_heads, attends_to):
    module = randomized(BehaviorPatternConversion(D, num_heads, layer_norm=layer_norm, attends_to=attends_to))
    query, former = randn(B, F, D), randn(B, F, D, seed=1)
    options = {"transition": parameters.conversion(module), "num_heads": num_heads, "both": attends_to == "both"}
    expected = common.per_sample(bpcm.bpc, query.numpy(), former.numpy(), **options)
    assert_close(module(query, former), expected)


def test_dropout_acts_on_the_message_alone():
    module = BehaviorPatternConversion(D, dropout=1.0).double().train()
    query = randn(B, F, D)
    assert_close(module(query, randn(B, F, D, seed=1)), query.numpy())  # the whole message is dropped, q stays
