"""Marginal probabilities from conditional ones, and conditional base rates."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.modules.parameters import randn
from tests.oracles import chains
from tests.support import TREE, chain
from torchrec_mtl.errors import InputError
from torchrec_mtl.modules import MarginalFromConditional, conditional_rates

logit = st.floats(-300, 300) | st.floats(-5, 5)


@given(st.lists(logit, min_size=1, max_size=6))
def test_marginal_logits_are_right_for_rare_and_near_certain_events(conditional):
    """Also in float32, where a product of probabilities, or one minus it, would be 0."""
    rounded = np.float32(conditional)
    expected = chains.marginal_logits(rounded)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        x = torch.tensor(rounded, dtype=dtype)[None].requires_grad_()
        logits = MarginalFromConditional(chain(x.shape[1]))(x)
        np.testing.assert_allclose(logits[0].detach().double().numpy(), expected, rtol=tolerance, atol=tolerance)
        logits.sum().backward()
        assert x.grad.isfinite().all()
        assert (x.grad >= 0).all()  # no step's likelihood makes a task less likely


def test_marginal_probabilities_are_products():
    x = randn(50, 5)
    torch.testing.assert_close(MarginalFromConditional(chain(5))(x).sigmoid(), x.sigmoid().cumprod(1))
    assert torch.autograd.gradcheck(MarginalFromConditional(chain(5)), x[:3].requires_grad_())


def test_marginal_probabilities_are_products_along_the_path():
    x = randn(50, 4)
    c = x.sigmoid()
    expected = torch.stack([c[:, 0], c[:, 0] * c[:, 1], c[:, 0] * c[:, 2], c[:, 0] * c[:, 2] * c[:, 3]], dim=1)
    torch.testing.assert_close(MarginalFromConditional(TREE)(x).sigmoid(), expected)


def test_conditional_rates_follow_the_edges():
    rates = conditional_rates(torch.tensor([0.5, 0.2, 0.1, 0.02]), TREE.parents)
    torch.testing.assert_close(rates, torch.tensor([0.5, 0.4, 0.2, 0.2]))
    with pytest.raises(InputError, match=r"`base_rates` \(=\[0.25, 0.5\]\) must fall from a task to those after it"):
        conditional_rates(torch.tensor([0.25, 0.5]), (None, 0))
