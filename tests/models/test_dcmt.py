"""DCMT, against its paper's equations."""

import pytest
import torch

from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import chains, common
from tests.support import TREE, chain
from torchrec_mtl.models import DCMTArch
from torchrec_mtl.modules import initialize_linear_layers


@pytest.mark.parametrize("num_tasks", [1, 2, 4])
def test_matches_the_equations(num_tasks):
    arch, x = randomized(DCMTArch(10, chain(num_tasks), tower_layer_sizes=(7, 5))), randn(4, 10)
    towers = parameters.towers(arch.towers)
    outputs = arch.outputs(x)
    assert tuple(outputs) == arch.output_names
    assert_close(arch(x), common.per_sample(chains.esmm, x.numpy(), towers=towers))
    assert torch.equal(outputs["logits"], arch(x))
    assert_close(outputs["conditional_logits"], common.per_sample(chains.conditional_logits, x.numpy(), towers=towers))
    twins = [[*tower[:-1], *parameters.mlp(twin)] for tower, twin in zip(towers[1:], arch.counterfactual, strict=True)]
    assert outputs["counterfactual_logits"].shape == (4, num_tasks - 1)
    if twins:
        opposite = common.per_sample(chains.conditional_logits, x.numpy(), towers=twins)
        assert_close(outputs["counterfactual_logits"], opposite)


def test_starts_with_the_counterfactual_prior_fulfilled():
    arch = DCMTArch(10, TREE, tower_layer_sizes=(7,))
    initialize_linear_layers(arch)
    arch.start_from_base_rates(torch.tensor([0.5, 0.2, 0.1, 0.02]))
    outputs = arch.outputs(torch.zeros(1, 10))
    of_steps = outputs["conditional_logits"][:, [child for _, child in TREE.edges]]
    total = of_steps.sigmoid() + outputs["counterfactual_logits"].sigmoid()
    torch.testing.assert_close(total, torch.ones(1, 3))
