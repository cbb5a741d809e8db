import itertools

import numpy as np
import pytest
import torch

from tests.oracles import common, tafe
from torchrec_mtl import ops
from torchrec_mtl.errors import InputError

SHAPES = [(2, 5, 6, 4, 1), (2, 5, 6, 4, 2), (1, 1, 3, 1, 3), (3, 34, 8, 16, 2), (2, 2, 10, 7, 5)]  # B F D K m


def weights(rng, *shape):
    return [rng.normal(size=shape) for _ in range(3)]


@pytest.mark.parametrize(("batch", "rows", "dim", "points", "heads"), SHAPES)
def test_attention_is_the_equation(batch, rows, dim, points, heads):
    rng = np.random.default_rng(0)
    queries, inputs = rng.normal(size=(batch, points, dim)), rng.normal(size=(batch, rows, dim))
    query, key, value = weights(rng, dim, dim)
    expected = common.per_sample(
        lambda x, y: common.attention(x @ query.T, y, {"key": key, "value": value}, heads), queries, inputs
    )
    tensors = [torch.tensor(x) for x in (queries, inputs, query, key, value)]
    np.testing.assert_allclose(ops.attention(*tensors, heads), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", ["auto", "reference", "folded"])
@pytest.mark.parametrize(("batch", "rows", "dim", "points", "heads"), SHAPES)
def test_inducing_attention_is_the_equation(backend, batch, rows, dim, points, heads):
    rng = np.random.default_rng(1)
    induced, inputs = rng.normal(size=(points, dim)), rng.normal(size=(batch, rows, dim))
    selection = rng.random((batch, points)) * (rng.random((batch, points)) < 0.6)
    key, value, out = weights(rng, dim, dim)
    layer = {"inducing_points": induced, "key": key, "value": value, "out": out}
    expected = common.per_sample(tafe.inducing_attention, inputs, selection, layer=layer, num_heads=heads)
    tensors = [torch.tensor(x) for x in (induced, selection, inputs, key, value, out)]
    actual = ops.inducing_attention(*tensors, heads, backend)
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", ["auto", "reference", "folded"])
@pytest.mark.parametrize(("batch", "rows", "dim", "tasks", "heads"), SHAPES)
def test_indicator_attention_is_the_equation(backend, batch, rows, dim, tasks, heads):
    rng = np.random.default_rng(2)
    indicators, inputs = rng.normal(size=(tasks, dim)), rng.normal(size=(batch, rows, dim))
    key, value, out = weights(rng, tasks, dim, dim)
    tensors = [torch.tensor(x) for x in (indicators, inputs, key, value, out)]
    actual = ops.indicator_attention(*tensors, heads, backend)
    for sample, task in itertools.product(range(batch), range(tasks)):
        own = {"key": key[task], "value": value[task], "out": out[task]}
        expected = tafe.projected_attention(indicators[task, None], inputs[sample], own, heads)[0]
        np.testing.assert_allclose(actual[sample, task], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("function", ["inducing_attention", "indicator_attention"])
def test_backends_have_the_same_gradients(function):
    torch.manual_seed(0)
    first = [torch.randn(4, 6), torch.rand(3, 4)] if function == "inducing_attention" else [torch.randn(4, 6)]
    shape = (6, 6) if function == "inducing_attention" else (4, 6, 6)
    arguments = [*first, torch.randn(3, 5, 6), *(torch.randn(shape) for _ in range(3))]
    arguments = [x.double().requires_grad_() for x in arguments]
    upstream = torch.randn(3, 4, 6).double()
    gradients = [
        torch.autograd.grad(getattr(ops, function)(*arguments, 2, backend), arguments, upstream)
        for backend in ("reference", "folded")
    ]
    for reference, folded in zip(*gradients, strict=True):
        torch.testing.assert_close(folded, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", ["reference", "folded"])
def test_an_empty_batch_is_one(backend):
    square = [torch.randn(6, 6) for _ in range(3)]
    output = ops.inducing_attention(torch.randn(4, 6), torch.rand(0, 4), torch.randn(0, 5, 6), *square, 2, backend)
    assert output.shape == (0, 4, 6)


def test_an_unknown_backend_is_refused():
    square = [torch.randn(6, 6) for _ in range(3)]
    arguments = (torch.randn(4, 6), torch.rand(2, 4), torch.randn(2, 5, 6), *square, 2)
    with pytest.raises(InputError, match=r"`backend` \(='triton2'\) must be one of"):
        ops.inducing_attention(*arguments, backend="triton2")
