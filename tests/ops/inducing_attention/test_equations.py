"""Every path of the inducing-point attention on the CPU against the definition in float64, and that against NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.ops import stacks
from tests.ops.stacks import Shape
from tests.oracles import tafe
from torchrec_mtl import ops
from torchrec_mtl.ops import AdapterWeights, GeneratorWeights, InducingLayer, InducingStack
from torchrec_mtl.ops.inducing_attention import reference

pytestmark = pytest.mark.usefixtures("kernel")

PATHS = ["sdpa", "compact", "cpp"]
SHAPES = [
    Shape(B=4, F=1, K=1, D=8, m=1),
    Shape(B=3, F=20, K=5, D=33, m=3, L=3, T=1),
    Shape(B=9, F=20, K=64, D=18, m=2, L=4),
    Shape(B=5, F=63, K=5, D=18, m=1, L=1, T=4),
    Shape(B=2, F=1000, K=5, D=8, m=2),
    Shape(B=17, F=3, K=8, D=6, m=3, T=3),
    Shape(B=0, F=5, K=4, D=6, m=2),
]
MASKS = {"mixed": None, "none": 0.0, "all": 1.0}


def run(path, shape, residual="input", z_grad="gated"):
    return stacks.stack(lambda *arguments: ops.inducing_stack(*arguments, backend=path), shape.m, residual, z_grad)


def tensors(shape, mask="mixed"):
    arguments = stacks.tensors(shape)
    if MASKS[mask] is not None:
        arguments[1] = torch.full_like(arguments[1], MASKS[mask])
    return arguments


def assert_close(actual, expected):
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11 * max(largest, 1.0))


def block(weights, query):
    queries, key, value, output, weight, bias = (x.numpy() for x in weights)
    return {query: queries, "key": key, "value": value, "out": output, "norm": {"weight": weight, "bias": bias}}


@pytest.mark.parametrize("residual", ["input", "query", "none"])
@pytest.mark.parametrize("path", ["reference", *PATHS])
def test_the_stack_is_tafe_equations_17_to_22(path, residual):
    shape = Shape(B=4, F=5, K=4, D=6, m=2, L=3, T=2)
    inputs, selection, *weights = arguments = tensors(shape)
    layers, adapters = GeneratorWeights(*weights[:6]), AdapterWeights(*weights[6:])
    actual = run(path, shape, residual)(*arguments)
    for fields, z, of_sample in zip(inputs.numpy(), selection.numpy(), actual, strict=True):
        adapted = [None] * shape.T
        for index, (layer, adapter) in enumerate(zip(layers.layers(), adapters.layers(), strict=True)):
            fields = tafe.asrg(fields, z, block(layer, "inducing_points"), shape.m, residual, first=index == 0)
            of_tasks = [block(task, "indicator") for task in zip(*adapter, strict=True)]
            pairs = zip(adapted, of_tasks, strict=True)
            adapted = [tafe.task_adapter(fields, former, task, shape.m) for former, task in pairs]
        np.testing.assert_allclose(of_sample, adapted, rtol=1e-9)


@pytest.mark.parametrize("residual", ["input", "query", "none"])
@pytest.mark.parametrize("path", ["reference", "sdpa"])
def test_a_layer_is_tafe_equations_17_to_20(path, residual):
    inputs, selection, *weights = stacks.tensors(Shape(B=4, F=5, K=5, D=6, m=2))
    layer = GeneratorWeights(*weights[:6]).layers()[0]
    actual = ops.inducing_layer(inputs, selection, InducingLayer(layer, 2, residual), path)
    for fields, z, of_sample in zip(inputs.numpy(), selection.numpy(), actual, strict=True):
        expected = tafe.asrg(fields, z, block(layer, "inducing_points"), 2, residual, first=False)
        np.testing.assert_allclose(of_sample, expected, rtol=1e-9)
    halved = ops.inducing_layer(inputs, selection / 2, InducingLayer(layer, 2, scale=3**-0.5), path)
    scaled = ops.inducing_layer(inputs, selection, InducingLayer(layer, 2, scale=0.5 * 3**-0.5), path)
    torch.testing.assert_close(scaled, halved)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("path", PATHS)
def test_outputs_and_gradients_are_the_definitions(path, shape, mask):
    arguments = tensors(shape, mask)
    expected = stacks.results(run("reference", shape), arguments, torch.float64, "cpu")
    for actual, definition in zip(
        stacks.results(run(path, shape), arguments, torch.float64, "cpu"), expected, strict=True
    ):
        assert_close(actual, definition)


@pytest.mark.parametrize("residual", ["input", "query", "none"])
@pytest.mark.parametrize(
    ("path", "z_grad"), [("sdpa", "full"), ("cpp", "full"), ("compact", "gated"), ("cpp", "gated")]
)
def test_every_residual_and_gradient_of_z(path, z_grad, residual):
    shape = Shape(B=11, F=5, K=7, D=8, m=2, L=3)
    arguments = tensors(shape)
    expected = stacks.results(run("reference", shape, residual, z_grad), arguments, torch.float64, "cpu")
    for actual, definition in zip(
        stacks.results(run(path, shape, residual, z_grad), arguments, torch.float64, "cpu"), expected, strict=True
    ):
        assert_close(actual, definition)
    at_zero = expected[2][arguments[1] == 0]
    assert at_zero.ne(0).any() if z_grad == "full" else at_zero.eq(0).all()


@pytest.mark.parametrize("z_grad", [None, "gated", "full"])
@pytest.mark.parametrize("path", ["reference", "sdpa"])
def test_a_stack_and_its_layers_one_by_one_have_the_same_gradient_where_z_is_0(path, z_grad):
    """With the rule named, and with the one that each of them takes if none is."""
    shape = Shape(B=5, F=5, K=7, D=8, m=2, L=3)
    arguments, given = tensors(shape), {} if z_grad is None else {"z_grad": z_grad}

    def one_by_one(inputs, selection, *weights):
        layers, adapters = GeneratorWeights(*weights[:6]), AdapterWeights(*weights[6:])
        adapted, residual = None, "query"
        for weights_of_layer, adapter in zip(layers.layers(), adapters.layers(), strict=True):
            layer = InducingLayer(weights_of_layer, shape.m, residual, **given)
            inputs, residual = ops.inducing_layer(inputs, selection, layer, path), "input"
            adapted = ops.adapter_layer(inputs, adapted, adapter, shape.m)
        return adapted

    def at_once(inputs, selection, *weights):
        stack = InducingStack(GeneratorWeights(*weights[:6]), AdapterWeights(*weights[6:]), shape.m, **given)
        return ops.inducing_stack(inputs, selection, stack, path)

    results = [stacks.results(function, arguments, torch.float64, "cpu") for function in (one_by_one, at_once)]
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)
    at_zero = results[0][2][arguments[1] == 0]
    assert at_zero.ne(0).any() if z_grad == "full" else at_zero.eq(0).all()


@pytest.mark.parametrize(("scale", "tolerance"), [(1, 3e-6), (10, 5e-5)])  # large scores: gradients of differences
@pytest.mark.parametrize("shape", SHAPES[1:5])
@pytest.mark.parametrize("path", PATHS)
def test_in_float32_it_is_as_exact_as_the_definition(path, shape, scale, tolerance):
    arguments = tensors(shape)
    arguments[0] *= scale
    exact = stacks.results(run("reference", shape), arguments, torch.float64, "cpu")
    eager = stacks.results(run("reference", shape), arguments, torch.float32, "cpu")
    for actual, plain, definition in zip(
        stacks.results(run(path, shape), arguments, torch.float32, "cpu"), eager, exact, strict=True
    ):
        assert (actual - definition).norm() <= 2 * (plain - definition).norm() + tolerance * definition.norm()


@pytest.mark.parametrize("path", ["sdpa", "compact"])
def test_in_bfloat16_it_is_as_exact_as_the_definition(path):
    arguments = tensors(SHAPES[2])
    exact = stacks.results(run("reference", SHAPES[2]), arguments, torch.float64, "cpu")
    eager = stacks.results(run("reference", SHAPES[2]), arguments, torch.bfloat16, "cpu")
    for actual, plain, definition in zip(
        stacks.results(run(path, SHAPES[2]), arguments, torch.bfloat16, "cpu"), eager, exact, strict=True
    ):
        assert (actual - definition).norm() <= 2 * (plain - definition).norm() + 1e-2 * definition.norm()


@given(st.data())
def test_leaving_out_rows_that_are_alike_changes_nothing(data):
    sizes = {name: data.draw(st.integers(1, 9), name) for name in "BFK"}
    heads = data.draw(st.integers(1, 3), "m")
    layers, tasks = (data.draw(st.integers(1, 3), name) for name in "LT")
    shape = Shape(**sizes, D=heads * data.draw(st.integers(1, 4), "d_h"), m=heads, L=layers, T=tasks)
    arguments = stacks.tensors(shape, data.draw(st.floats(0, 1), "active"), data.draw(st.integers(0, 99), "seed"))
    arguments[1] = data.draw(st.permutations(arguments[1].tolist()).map(torch.tensor), "selection").double()
    residual = data.draw(st.sampled_from(["input", "query", "none"]), "residual")
    expected = stacks.results(run("sdpa", shape, residual), arguments, torch.float64, "cpu")
    for path in ("compact", "cpp"):
        for actual, dense in zip(
            stacks.results(run(path, shape, residual), arguments, torch.float64, "cpu"), expected, strict=True
        ):
            torch.testing.assert_close(actual, dense, rtol=1e-6, atol=1e-8)  # at D = 1 LayerNorm divides by 0.003


@pytest.mark.parametrize("path", ["reference", *PATHS])
def test_the_order_of_points_does_not_matter(path):
    shape = Shape(B=9, F=5, K=7, D=8, m=2, L=3)
    arguments = tensors(shape)
    before = run(path, shape)(*arguments)
    order = torch.randperm(shape.K)
    arguments[1], arguments[2] = arguments[1][:, order], arguments[2][:, order]
    assert_close(run(path, shape)(*arguments), before)


@pytest.mark.parametrize("path", PATHS)
def test_what_is_not_a_number_stays_in_its_sample(path):
    shape = Shape(B=19, F=5, K=7, D=8, m=2)
    arguments = tensors(shape)
    expected = run(path, shape)(*arguments)
    arguments[0][9, 2, 3] = torch.nan
    actual = run(path, shape)(*arguments)
    assert actual[9].isnan().all()
    others = torch.arange(shape.B) != 9
    assert torch.equal(actual[others], expected[others])


@pytest.mark.parametrize("path", PATHS)
def test_gradcheck(path):
    shape = Shape(B=3, F=4, K=5, D=6, m=2)
    arguments = [x.requires_grad_() for x in tensors(shape)]
    z_grad = "gated" if path == "compact" else "full"  # where z is 0 the function has a gradient, gated or not
    if z_grad == "gated":
        arguments[1].requires_grad_(False)
    assert torch.autograd.gradcheck(run(path, shape, "input", z_grad), arguments, fast_mode=True)


def test_the_adapters_of_one_layer_are_the_definitions():
    _, _, *weights = stacks.tensors(Shape(B=1, F=1, K=1, D=6, m=3, T=4))
    adapter = AdapterWeights(*weights[6:]).layers()[0]
    shared, former = torch.randn(5, 7, 6, dtype=torch.float64), torch.randn(5, 4, 6, dtype=torch.float64)
    for before in (None, former):
        assert_close(ops.adapter_layer(shared, before, adapter, 3), reference.adapter_layer(shared, before, adapter, 3))
