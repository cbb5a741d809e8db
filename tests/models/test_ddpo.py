"""DDPO, against its paper's equations."""

import pytest
import torch

from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import chains
from tests.support import TASKS, chain, tables
from torchrec_mtl.errors import InputError
from torchrec_mtl.models import DDPO, DDPOArch


@pytest.mark.parametrize("num_tasks", [1, 2, 4])
@pytest.mark.parametrize("sizes", [(6,), (7, 5, 4)])
def test_matches_the_equations(num_tasks, sizes):
    arch, x = randomized(DDPOArch(10, chain(num_tasks), tower_layer_sizes=sizes)), randn(4, 10)
    outputs, params = arch.outputs(x), parameters.ddpo(arch)
    assert tuple(outputs) == arch.output_names
    assert torch.equal(outputs["logits"], arch(x))
    for row, of_row in enumerate(x.numpy()):
        conditional, conversion = chains.ddpo(of_row, params)
        assert_close(outputs["conditional_logits"][row], conditional)
        assert_close(outputs["conversion_logits"][row], conversion)
        assert_close(outputs["logits"][row], chains.marginal_logits(conditional))


def test_representations_without_a_layer_raise():
    with pytest.raises(InputError, match=r"`tower_layer_sizes` \(=\[\]\) must have at least one"):
        DDPO(tables(), TASKS, tower_layer_sizes=())
