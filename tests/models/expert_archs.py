"""What the tests of OMoE, MMoE and PLE share."""

import pytest
import torch

from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import experts
from torchrec_mtl.modules import DSelectK

IN, T = 10, 3
GATES = {
    "softmax": {},
    "per_example": {"gate": DSelectK(gamma=6.0)},
    "one": {"gate": DSelectK(num_selected=1, gamma=6.0)},
    "static": {"gate": DSelectK(num_selected=3, per_example=False, gamma=2.0)},
}
every_gate = pytest.mark.parametrize("gate", GATES.values(), ids=GATES)


def make(arch_class, expert_layer_sizes=(7, 6), tower_layer_sizes=(5,), **arguments):
    sizes = {"expert_layer_sizes": expert_layer_sizes, "tower_layer_sizes": tower_layer_sizes}
    return randomized(arch_class(IN, T, **sizes, **arguments))


def inputs():
    return randn(4, IN, seed=1)


def logits(arch):
    return arch(inputs()).detach()


def assert_is_mixture_of_experts(arch):
    params = {**parameters.mixture(arch.mixture), "towers": parameters.towers(arch.towers)}
    assert_close(arch(inputs()), experts.mixture_of_experts(inputs().numpy(), params))


def assert_gate_of_equal_experts_does_not_matter(arch):
    with torch.no_grad():
        for name, parameter in arch.named_parameters():
            if "experts." in name:
                one = randn(*parameter.shape[1:], seed=parameter.shape[1:].numel())
                parameter.copy_(one.expand_as(parameter))
        before = logits(arch)
        for name, parameter in arch.named_parameters():
            if "gate" in name:
                parameter.neg_()
    torch.testing.assert_close(logits(arch), before, rtol=1e-12, atol=1e-12)
