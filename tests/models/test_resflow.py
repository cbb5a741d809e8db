"""ResFlow, against the equations of its docstring."""

import pytest
import torch

from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import chains, common
from tests.support import TREE, chain
from torchrec_mtl.errors import InputError
from torchrec_mtl.models import ResFlowArch
from torchrec_mtl.modules import initialize_linear_layers


@pytest.mark.parametrize(("layer_links", "logit_links"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("sizes", [(), (6,), (7, 5, 4)])
@pytest.mark.parametrize("tasks", [chain(1), chain(2), chain(4), TREE], ids=["one", "two", "four", "tree"])
def test_matches_the_equations(tasks, sizes, layer_links, logit_links):
    links = {"layer_links": layer_links, "logit_links": logit_links}
    arch, x = randomized(ResFlowArch(10, tasks, tower_layer_sizes=sizes, **links)), randn(4, 10)
    params, parents = parameters.resflow(arch), tasks.parents
    assert_close(arch(x), common.per_sample(chains.resflow, x.numpy(), parameters=params, parents=parents, **links))


def test_a_task_reaches_only_those_that_need_it():
    arch, x = randomized(ResFlowArch(10, TREE, tower_layer_sizes=(6, 5))), randn(4, 10)
    before = arch(x)
    with torch.no_grad():
        arch.layers[0][2][0]._mlp[0]._linear.bias += 1.0  # of "buy", which "back" needs
    assert (arch(x) != before).any(0).tolist() == [False, False, True, True]


@pytest.mark.parametrize("logit_links", [True, False])
def test_starts_from_base_rates_in_a_tree(logit_links):
    """Also from rates that rise along it, as every logit is of a marginal probability."""
    arch, rates = ResFlowArch(10, TREE, logit_links=logit_links), torch.tensor([0.5, 0.7, 0.02, 0.0003])
    initialize_linear_layers(arch)
    arch.start_from_base_rates(rates)
    torch.testing.assert_close(arch(torch.zeros(2, 10)).sigmoid(), rates.expand(2, -1))


def test_base_rates_out_of_range_raise():
    with pytest.raises(InputError, match=r"`base_rates` \(=1 for a task\) must be above 0 and below 1"):
        ResFlowArch(10, chain(2)).start_from_base_rates(torch.tensor([1.0, 0.5]))
