"""LSTMs side by side, against PyTorch's own, with copied weights."""

import pytest
import torch
from torch import nn

from tests.modules.parameters import randn, randomized
from torchrec_mtl.modules import LSTMs

N, B, S, IN, H = 3, 4, 5, 6, 2
PYTORCH_ORDER = [0, 1, 3, 2]  # of i, f, o and g: PyTorch has o last


def pytorchs(module, network):
    lstm = nn.LSTM(IN, H, batch_first=True).double()

    def reordered(weight):
        return weight[network].unflatten(0, (4, H))[PYTORCH_ORDER].flatten(0, 1)

    with torch.no_grad():
        lstm.weight_ih_l0.copy_(reordered(module.input))
        lstm.weight_hh_l0.copy_(reordered(module.recurrent))
        lstm.bias_ih_l0.copy_(reordered(module.bias))
        lstm.bias_hh_l0.zero_()
    return lstm


@pytest.mark.parametrize("shared", [True, False])
def test_each_is_pytorchs_lstm(shared):
    module, x = randomized(LSTMs(N, IN, H, S)), randn(B, 1 if shared else N, S, IN).requires_grad_()
    states = module(x)
    expected = torch.stack([pytorchs(module, n)(x[:, 0 if shared else n])[0] for n in range(N)], dim=1)
    torch.testing.assert_close(states, expected, rtol=1e-12, atol=1e-14)
    of_input = [torch.autograd.grad((each**2).sum(), x)[0] for each in (states, expected)]
    torch.testing.assert_close(*of_input, rtol=1e-12, atol=1e-14)


def test_starts_by_keeping_what_it_has():
    module = LSTMs(N, IN, H, S)
    assert module.bias.tolist() == [[0.0] * H + [1.0] * H + [0.0] * 2 * H] * N
    assert 0.8 < module.input.abs().max() * ((IN + H) / 6) ** 0.5 <= 1
    assert 0.8 < module.recurrent.abs().max() * (2 * H / 6) ** 0.5 <= 1
