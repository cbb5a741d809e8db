"""Precision, symmetries and gradients of every backend on the CPU."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.ops.inducing_attention import stacks
from tests.ops.inducing_attention.stacks import BACKENDS, SHAPES, Shape, assert_close

pytestmark = pytest.mark.usefixtures("kernel")


def check_accuracy(backend, shape, arguments, dtype, tolerance):
    """The errors are at most twice those of the definition in the same precision, and the tolerance."""
    run, definition = (stacks.on_backend(name, shape.m) for name in (backend, "reference"))
    exact, eager = (stacks.results(definition, arguments, kind) for kind in (torch.float64, dtype))
    for actual, plain, expected in zip(stacks.results(run, arguments, dtype), eager, exact, strict=True):
        assert (actual - expected).norm() <= 2 * (plain - expected).norm() + tolerance * expected.norm()


@pytest.mark.parametrize(("scale", "tolerance"), [(1, 3e-6), (10, 5e-5)])  # large scores: gradients are differences
@pytest.mark.parametrize("shape", SHAPES[1:5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_in_float32_it_is_as_accurate_as_the_definition(backend, shape, scale, tolerance):
    arguments = stacks.tensors(shape)
    arguments[0] *= scale
    check_accuracy(backend, shape, arguments, torch.float32, tolerance)


@pytest.mark.parametrize("backend", ["sdpa", "compact", "cpp"])
def test_in_bfloat16_it_is_as_accurate_as_the_definition(backend):
    check_accuracy(backend, SHAPES[2], stacks.tensors(SHAPES[2]), torch.bfloat16, 1e-2)


@given(st.data())
def test_computing_identical_rows_once_changes_nothing(data):
    sizes = {name: data.draw(st.integers(1, 9), name) for name in "BFK"}
    heads = data.draw(st.integers(1, 3), "m")
    layers, tasks = (data.draw(st.integers(1, 3), name) for name in "LT")
    shape = Shape(**sizes, D=heads * data.draw(st.integers(1, 4), "d_h"), m=heads, L=layers, T=tasks)
    arguments = stacks.tensors(shape, data.draw(st.floats(0, 1), "active"), data.draw(st.integers(0, 99), "seed"))
    arguments[1] = data.draw(st.permutations(arguments[1].tolist()).map(torch.tensor), "selection").double()
    residual = data.draw(st.sampled_from(["input", "query", "none"]), "residual")
    masked = data.draw(st.booleans(), "masked")
    functions = (stacks.on_backend(name, shape.m, residual, masked=masked) for name in ("sdpa", "compact", "cpp"))
    expected, *others = (stacks.results(function, arguments) for function in functions)
    for results in others:
        for actual, dense in zip(results, expected, strict=True):
            torch.testing.assert_close(actual, dense, rtol=1e-6, atol=1e-8)  # at D = 1 LayerNorm divides by 0.003


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_the_order_of_points_does_not_matter(backend):
    shape = Shape(B=9, F=5, K=7, D=8, m=2, L=3)
    arguments = stacks.tensors(shape)
    before = stacks.on_backend(backend, shape.m)(*arguments)
    order = torch.randperm(shape.K)
    arguments[1], arguments[2] = arguments[1][:, order], arguments[2][:, order]
    assert_close(stacks.on_backend(backend, shape.m)(*arguments), before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_stays_in_its_sample(backend):
    shape = Shape(B=19, F=5, K=7, D=8, m=2)
    arguments = stacks.tensors(shape)
    expected = stacks.on_backend(backend, shape.m)(*arguments)
    arguments[0][9, 2, 3] = torch.nan
    actual = stacks.on_backend(backend, shape.m)(*arguments)
    assert actual[9].isnan().all()
    others = torch.arange(shape.B) != 9
    assert torch.equal(actual[others], expected[others])


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    shape = Shape(B=3, F=4, K=5, D=6, m=2)
    arguments = [x.requires_grad_() for x in stacks.tensors(shape)]
    z_grad = "gated" if backend == "compact" else "full"
    if z_grad == "gated":  # where z is 0 the function has a slope, but the gated gradient is 0
        arguments[1].requires_grad_(False)
    assert torch.autograd.gradcheck(stacks.on_backend(backend, shape.m, "input", z_grad), arguments, fast_mode=True)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_gradcheck_where_z_masks(backend):
    shape = Shape(B=3, F=4, K=5, D=6, m=2, L=3)
    arguments = [x.requires_grad_() for x in stacks.tensors(shape, active=1.0)]
    arguments[1] = (arguments[1].detach() * (torch.arange(5) != 2)).clamp(max=0.9)
    slopes = arguments[1].clone().requires_grad_()
    run = stacks.on_backend(backend, shape.m, masked=True)
    selected = arguments[1] != 0

    def of_selected(slopes, *others):  # a point at 0 stays there: it has no slope
        return run(others[0], torch.where(selected, slopes, 0.0), *others[1:])

    others = [x for place, x in enumerate(arguments) if place != 1]
    assert torch.autograd.gradcheck(of_selected, [slopes, *others], fast_mode=True)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_where_z_masks_a_point_at_0_is_as_if_it_were_not_there(backend):
    shape = Shape(B=4, F=5, K=7, D=8, m=2, L=3)
    arguments, left_out = stacks.tensors(shape, active=1.0), [1, 4, 5]
    arguments[1] = torch.rand(4, 7, dtype=torch.float64) + 0.1
    arguments[1][:, left_out] = 0
    kept = [k for k in range(shape.K) if k not in left_out]
    without = [arguments[0], arguments[1][:, kept], arguments[2][:, kept], *arguments[3:]]
    run = stacks.on_backend(backend, shape.m, masked=True)
    results, expected = stacks.results(run, arguments), stacks.results(run, without)
    assert results[3][:, left_out].eq(0).all()  # dI
    results[2], results[3] = results[2][:, kept], results[3][:, kept]
    for actual, smaller in zip(results, expected, strict=True):
        assert_close(actual, smaller)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_where_z_masks_a_point_leaves_continuously(backend):
    arguments = stacks.tensors(stacks.SMALL, active=1.0)
    arguments[1] = torch.full_like(arguments[1], 0.5)
    jumps = {}
    for masked in (False, True):
        run = stacks.on_backend(backend, masked=masked)
        outputs = []
        for z in (1e-9, 0.0):
            arguments[1][:, 3] = z
            outputs.append(run(*arguments))
        jumps[masked] = float((outputs[0] - outputs[1]).abs().max())
    assert jumps[True] < 1e-7
    arguments[1][:, 3] = 0
    masked, keys = (stacks.on_backend(backend, masked=masked)(*arguments) for masked in (True, False))
    assert (masked - keys).abs().max() > 0.01  # the two readings differ


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_where_z_masks_and_selects_nothing_the_adapters_read_nothing(backend):
    inputs, selection, *weights = stacks.tensors(stacks.SMALL)
    adapted = stacks.on_backend(backend, masked=True)(inputs, 0 * selection, *weights)
    norm_weight, norm_bias = weights[-2:]
    expected = torch.zeros(stacks.SMALL.T, stacks.SMALL.D, dtype=torch.float64)
    for weight, bias in zip(norm_weight, norm_bias, strict=True):
        expected = torch.nn.functional.layer_norm(expected, expected.shape[-1:]) * weight + bias
    assert_close(adapted, expected.expand_as(adapted))
