"""ESMM, against its paper's equation."""

import pytest
import torch

from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import chains, common
from tests.support import build, chain
from torchrec_mtl.errors import InputError
from torchrec_mtl.models import ESMMArch


@pytest.mark.parametrize("num_tasks", [1, 2, 4])
@pytest.mark.parametrize("sizes", [(), (7,), (7, 5, 4)])
def test_matches_the_equation(num_tasks, sizes):
    arch, x = randomized(ESMMArch(10, chain(num_tasks), tower_layer_sizes=sizes)), randn(4, 10)
    assert_close(arch(x), common.per_sample(chains.esmm, x.numpy(), towers=parameters.towers(arch.towers)))


def test_base_rates_that_do_not_fall_raise():
    rule = "must fall from a task to those after it"
    with pytest.raises(InputError, match=rf"`base_rates` \(=\[0.25, 0.25, 0.125\]\) {rule}"):
        build("esmm").start_from_base_rates(torch.tensor([0.25, 0.25, 0.125]))
