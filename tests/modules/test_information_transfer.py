"""AITM's information transfer, against its equations."""

from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import chains, common
from torchrec_mtl.modules import InformationTransfer

B, D = 4, 6


def test_matches_the_equations():
    module = randomized(InformationTransfer(D))
    transferred, own = randn(B, D), randn(B, D, seed=1)
    weights = parameters.information_transfer(module)
    expected = common.per_sample(chains.information_transfer, transferred.numpy(), own.numpy(), weights=weights)
    assert_close(module(transferred, own), expected)
