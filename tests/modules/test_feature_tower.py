"""BPCM's feature tower and its units, against the equations."""

import pytest

from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import bpcm, common
from torchrec_mtl.errors import InputError
from torchrec_mtl.modules import ComplementaryGate, FeatureAggregation, FeatureTower

B, F, D = 3, 5, 6


@pytest.mark.parametrize("over", ["embedding", "fields"])
def test_aggregation_matches_bpcm_equation_4(over):
    module = randomized(FeatureAggregation(F, D, hidden_size=7, over=over))
    x, weights = randn(B, F, D), parameters.aggregation(module)
    assert_close(module(x), common.per_sample(bpcm.aggregation, x.numpy(), weights=weights, mixing=over))


def test_gate_matches_bpcm_equations_5_and_6():
    module = randomized(ComplementaryGate(D))
    attended, organic = randn(B, F, D), randn(B, F, D, seed=1)
    weights = parameters.complementary_gate(module)

    def gate(e_att, e_org):
        return bpcm.complementary_gate(e_org, e_att, bpcm.gate_signal(e_org, e_att, weights))

    assert_close(module(attended, organic), common.per_sample(gate, attended.numpy(), organic.numpy()))


@pytest.mark.parametrize("without", [(), ("attention",), ("aggregation",), ("gate",)])
@pytest.mark.parametrize("num_heads", [1, 3])
@pytest.mark.parametrize("over", ["embedding", "fields"])
def test_tower_matches_bpcm_equations_2_to_6(without, num_heads, over):
    module = randomized(FeatureTower(F, D, num_heads, over, **dict.fromkeys(without, False)))
    x, tower = randn(B, F, D), parameters.feature_tower(module)
    expected = common.per_sample(
        bpcm.feature_tower, x.numpy(), tower=tower, num_heads=num_heads, mixing=over, without=without
    )
    assert_close(module(x), expected)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: FeatureAggregation(F, D, over="rows"), r"`aggregation_over` \(='rows'\) must be one of"),
        (lambda: FeatureTower(F, D, attention=False, aggregation=False), "must keep one of its units"),
    ],
)
def test_wrong_arguments_raise(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()
