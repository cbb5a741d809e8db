"""Batch normalisation: PyTorch's in float64 but for the running variance; nothing of padding, of one row, of a NaN."""

import copy

import pytest
import torch
from torch.nn import functional as F

from tests.modules.parameters import assert_close, randn, randomized
from torchrec_mtl.errors import InputError
from torchrec_mtl.modules import BatchNorm

D = 4


def norm() -> BatchNorm:
    return randomized(BatchNorm(D)).train()


def statistics(module: BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    return module.running_mean.clone(), module.running_variance.clone()


def test_values_gradients_and_statistics_are_those_of_the_batch():
    module, x, upstream = norm(), randn(7, D).requires_grad_(), randn(7, D, seed=1)
    mean, variance = statistics(module)
    weight, bias = (p.detach().clone().requires_grad_() for p in (module.weight, module.bias))
    y = x.detach().clone().requires_grad_()
    expected = F.batch_norm(y, None, None, weight, bias, training=True, eps=1e-3)
    output = module(x)
    for each in (output, expected):
        (each * upstream).sum().backward()
    assert_close(output, expected.detach().numpy())
    assert_close(x.grad, y.grad.numpy(), rtol=1e-9)
    assert_close(module.weight.grad, weight.grad.numpy())
    assert_close(module.bias.grad, bias.grad.numpy())
    assert_close(module.running_mean, 0.9 * mean + 0.1 * x.mean(0).detach())
    assert_close(module.running_variance, 0.9 * variance + 0.1 * x.var(0, correction=0).detach())


def test_in_evaluation_a_row_sees_no_other():
    module, x = norm().eval(), randn(7, D)
    before = statistics(module)
    expected = F.batch_norm(x, *before, module.weight, module.bias, eps=1e-3).detach()
    assert_close(module(x), expected.numpy())
    assert_close(module(x[:1]), expected[:1].numpy())
    assert all(a.equal(b) for a, b in zip(statistics(module), before, strict=True))


def test_padding_is_in_no_statistics():
    module, x = norm(), randn(7, D)
    other = copy.deepcopy(module)
    module.num_padded = 2
    output = module(torch.cat([x[:5], 1e6 * x[5:]]))
    assert_close(output[:5], other(x[:5]).detach().numpy())
    assert all(a.equal(b) for a, b in zip(statistics(module), statistics(other), strict=True))


@pytest.mark.parametrize(("rows", "padded"), [(1, 0), (3, 2), (2, 2)])
def test_one_row_or_none_takes_the_running_statistics_and_leaves_them(rows, padded):
    module, x = norm(), randn(rows, D).requires_grad_()
    before = statistics(module)
    module.num_padded = padded
    output = module(x)
    output.sum().backward()
    assert_close(output, F.batch_norm(x, *before, module.weight, module.bias, eps=1e-3).detach().numpy())
    assert x.grad.isfinite().all()
    assert all(a.equal(b) for a, b in zip(statistics(module), before, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_leaves_the_running_statistics_finite(value):
    """The loop skips such a step; nothing else would bring the model back."""
    module, x = norm(), randn(7, D)
    x[3, 1] = value
    before = statistics(module)
    assert not module(x).isfinite().all()
    for found, old in zip(statistics(module), before, strict=True):
        assert found.isfinite().all()
        assert found[1] == old[1]
        assert (found[[0, 2, 3]] != old[[0, 2, 3]]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_of_half_precision_are_summed_in_full(dtype):
    module, x = norm().to(dtype), (100 + randn(1000, D)).to(dtype)
    expected = F.batch_norm(x.double(), None, None, module.weight.double(), module.bias.double(), True, eps=1e-3)
    output = module(x)
    assert output.dtype == module.running_mean.dtype == dtype
    torch.testing.assert_close(output.double(), expected, rtol=0.01, atol=0.01)


def test_no_column_is_refused():
    with pytest.raises(InputError, match=r"`features` \(=0\) must be at least 1"):
        BatchNorm(0)
