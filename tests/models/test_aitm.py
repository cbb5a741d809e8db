"""AITM, against its paper's equations."""

import pytest

from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import chains, common
from tests.support import TASKS, chain, tables
from torchrec_mtl.errors import InputError
from torchrec_mtl.models import AITM, AITMArch


@pytest.mark.parametrize("num_tasks", [1, 2, 4])
@pytest.mark.parametrize("sizes", [(6,), (7, 5, 4)])
def test_matches_the_equations(num_tasks, sizes):
    arch, x = randomized(AITMArch(10, chain(num_tasks), tower_layer_sizes=sizes)), randn(4, 10)
    params = {
        "f": [parameters.mlp(network) for network in arch.representations],
        "g": [parameters.mlp(network) for network in arch.information],
        "towers": parameters.towers(arch.towers),
        **(parameters.information_transfer(arch.transfer) if num_tasks > 1 else {}),
    }
    assert_close(arch(x), common.per_sample(chains.aitm, x.numpy(), parameters=params))


def test_towers_without_a_layer_raise():
    with pytest.raises(InputError, match=r"`tower_layer_sizes` \(=\[\]\) must have at least one"):
        AITM(tables(), TASKS, tower_layer_sizes=())
