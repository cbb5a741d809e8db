"""Weights of the gates, against the equations, and what DSelect-k selects."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.modules import parameters
from tests.modules.parameters import assert_close, randn
from tests.oracles import common, experts
from torchrec_mtl.errors import InputError
from torchrec_mtl.modules import DSelectGate, DSelectK, SoftmaxGate

IN = 6


def inputs(seed=0, size=16):
    return randn(size, IN, seed=seed)


@st.composite
def gates(draw, kind=("softmax", "dselect_k")):
    """A gate of any size with weights of any scale, in float64."""
    num_experts = draw(st.integers(1, 9))
    selected = DSelectK(
        num_selected=draw(st.integers(1, num_experts)),
        per_example=draw(st.booleans()),
        gamma=draw(st.sampled_from([0.5, 1.0, 4.0])),
    )
    make = SoftmaxGate if draw(st.sampled_from(kind)) == "softmax" else selected
    gate = make(IN, num_experts, num_gates=draw(st.integers(1, 3))).double()
    torch.manual_seed(draw(st.integers(0, 1000)))
    for parameter in gate.parameters():
        nn.init.normal_(parameter, std=draw(st.sampled_from([0.01, 1.0, 100.0])))
    return gate


@given(gates())
def test_weights_match_the_equations(gate):
    of_gates = parameters.gates(gate)
    expected = common.per_sample(lambda x: np.stack([experts.gate_weights(x, g) for g in of_gates]), inputs().numpy())
    assert_close(gate(inputs()), expected, atol=1e-12)


@given(gates())
def test_weights_are_a_distribution_over_the_experts(gate):
    weights = gate(inputs())
    assert weights.shape[2] == gate.num_experts
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(2), torch.ones_like(weights[..., 0]), rtol=1e-12, atol=0)


@given(gates(kind=("dselect_k",)))
def test_saturated_selectors_select_at_most_k(gate):
    with torch.no_grad():
        gate.codes.copy_(gate.codes.sign() * 1e6)
        weights = gate(inputs())
    num_selected = gate.shape[1]
    assert ((weights > 0).sum(2) <= num_selected).all()
    if num_selected == 1:
        assert set(weights.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("num_experts", range(1, 10))
def test_a_static_selector_reaches_every_expert(num_experts):
    """By the expert's number in binary, least significant digit first; spare codes start again from expert 0."""
    gate = DSelectGate(IN, num_experts, num_selected=1, per_example=False).double()
    for code in range(2**gate.num_digits):
        digits = [code >> j & 1 for j in range(gate.num_digits)]
        with torch.no_grad():
            gate.codes.copy_(torch.tensor(digits) * 2.0 - 1.0)
        expert = code if code < num_experts else code - num_experts
        assert gate(inputs())[:, 0].tolist() == [[float(e == expert) for e in range(num_experts)]] * 16


def test_a_static_gate_by_hand():
    """Selectors ``(S(1/4), S(1)) = (27/32, 1)`` and ``(1/2, 0)``, mixed 3 to 1."""
    gate = DSelectGate(IN, 4, num_selected=2, per_example=False).double()
    with torch.no_grad():
        gate.codes.copy_(torch.tensor([0.25, 1.0, 0.0, -1.0]))
        gate.mixture.copy_(torch.tensor([3.0, 1.0]).log())
    expected = torch.tensor([[[1 / 8, 1 / 8, 3 / 4 * 5 / 32, 3 / 4 * 27 / 32]]]).double()
    torch.testing.assert_close(gate(inputs(size=1)), expected)


def test_only_a_per_example_gate_depends_on_its_input():
    for per_example in (False, True):
        gate = DSelectGate(IN, 4, per_example=per_example).double()
        assert torch.equal(gate(inputs(0)), gate(inputs(1))) != per_example


def test_a_new_gate_favours_no_expert():
    """If the number of experts is a power of two."""
    gate = DSelectGate(IN, 8, per_example=False).double()
    torch.testing.assert_close(gate(inputs()), torch.full((16, 1, 8), 1 / 8).double(), rtol=0.1, atol=0)


def test_a_static_gate_learns_which_expert_is_right():
    """Only expert 2 of 3 gives the answer; gradient descent finds it and gives it all the weight."""
    torch.manual_seed(0)
    gate = DSelectGate(IN, 3, num_selected=2, per_example=False)
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.05)
    answers = torch.tensor([-1.0, 0.0, 1.0])
    for _ in range(100):
        loss = ((gate(torch.empty(1, IN)) @ answers - 1.0) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert gate(torch.empty(1, IN)).flatten().tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: DSelectGate(IN, 4, num_selected=0), r"`num_selected` \(=0\) must be from 1 to .* \(=4\)"),
        (lambda: DSelectGate(IN, 4, num_selected=5), r"`num_selected` \(=5\) must be from 1 to .* \(=4\)"),
        (lambda: DSelectGate(IN, 4, gamma=0.0), r"`gamma` \(=0.0\) must be above 0"),
        (lambda: DSelectK(num_selected=0), r"`num_selected` \(=0\) must be at least 1"),
        (lambda: DSelectK(gamma=0.0), r"`gamma` \(=0.0\) must be above 0"),
    ],
)
def test_wrong_arguments_raise(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()
