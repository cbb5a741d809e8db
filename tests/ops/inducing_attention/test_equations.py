"""Every backend on the CPU against the definition in float64, and the definition against the papers' oracles."""

import numpy as np
import pytest
import torch

from tests.ops.inducing_attention import stacks
from tests.ops.inducing_attention.stacks import BACKENDS, SHAPES, Shape, assert_close
from tests.oracles import tafe
from torchrec_mtl import ops
from torchrec_mtl.ops import AdapterWeights, GeneratorWeights, InducingLayer, InducingStack
from torchrec_mtl.ops.inducing_attention import reference

pytestmark = pytest.mark.usefixtures("kernel")

SELECTIONS = {"mixed": None, "none": 0.0, "all": 1.0}


def block(weights, query):
    queries, key, value, output, weight, bias = (x.numpy() for x in weights)
    return {query: queries, "key": key, "value": value, "out": output, "norm": {"weight": weight, "bias": bias}}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("residual", ["input", "query", "none"])
@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_the_stack_is_tafe_equations_17_to_22(backend, residual, masked):
    shape = Shape(B=4, F=5, K=4, D=6, m=2, L=3, T=2)
    inputs, selection, *weights = arguments = stacks.tensors(shape)
    layers, adapters = GeneratorWeights(*weights[:6]), AdapterWeights(*weights[6:])
    actual = stacks.on_backend(backend, shape.m, residual, masked=masked)(*arguments)
    for fields, z, of_sample in zip(inputs.numpy(), selection.numpy(), actual, strict=True):
        adapted, shares = [None] * shape.T, z if masked else None
        for index, (layer, adapter) in enumerate(zip(layers.layers(), adapters.layers(), strict=True)):
            fields = tafe.asrg(
                fields, z, block(layer, "inducing_points"), shape.m, residual, index == 0, shares if index else None
            )
            of_tasks = [block(task, "indicator") for task in zip(*adapter, strict=True)]
            pairs = zip(adapted, of_tasks, strict=True)
            adapted = [tafe.task_adapter(fields, former, task, shape.m, shares) for former, task in pairs]
        np.testing.assert_allclose(of_sample, adapted, rtol=1e-9)


@pytest.mark.parametrize("residual", ["input", "query", "none"])
@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_a_layer_is_tafe_equations_17_to_20(backend, residual):
    inputs, selection, *weights = stacks.tensors(Shape(B=4, F=5, K=5, D=6, m=2))
    layer = GeneratorWeights(*weights[:6]).layers()[0]
    actual = ops.inducing_layer(inputs, selection, InducingLayer(layer, 2, residual), backend)
    for fields, z, of_sample in zip(inputs.numpy(), selection.numpy(), actual, strict=True):
        expected = tafe.asrg(fields, z, block(layer, "inducing_points"), 2, residual, first=False)
        np.testing.assert_allclose(of_sample, expected, rtol=1e-9)
    halved = ops.inducing_layer(inputs, selection / 2, InducingLayer(layer, 2, scale=3**-0.5), backend)
    scaled = ops.inducing_layer(inputs, selection, InducingLayer(layer, 2, scale=0.5 * 3**-0.5), backend)
    torch.testing.assert_close(scaled, halved)


@pytest.mark.parametrize("selected", SELECTIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_and_gradients_are_those_of_the_definition(backend, shape, selected):
    arguments = stacks.tensors(shape)
    if SELECTIONS[selected] is not None:
        arguments[1] = torch.full_like(arguments[1], SELECTIONS[selected])
    results = (stacks.results(stacks.on_backend(name, shape.m), arguments) for name in (backend, "reference"))
    for actual, definition in zip(*results, strict=True):
        assert_close(actual, definition)


@pytest.mark.parametrize("residual", ["input", "query", "none"])
@pytest.mark.parametrize(
    ("backend", "z_grad"), [("sdpa", "full"), ("cpp", "full"), ("compact", "gated"), ("cpp", "gated")]
)
def test_every_residual_and_gradient_of_z(backend, z_grad, residual):
    shape = Shape(B=11, F=5, K=7, D=8, m=2, L=3)
    arguments = stacks.tensors(shape)
    functions = (stacks.on_backend(name, shape.m, residual, z_grad) for name in (backend, "reference"))
    results, expected = (stacks.results(function, arguments) for function in functions)
    for actual, definition in zip(results, expected, strict=True):
        assert_close(actual, definition)
    at_zero = expected[2][arguments[1] == 0]
    assert at_zero.ne(0).any() if z_grad == "full" else at_zero.eq(0).all()


@pytest.mark.parametrize("selected", SELECTIONS)
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[1], SHAPES[5], SHAPES[6], Shape(B=11, F=5, K=40, D=8, m=2, L=3)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_and_gradients_where_z_masks_are_those_of_the_definition(backend, shape, selected):
    arguments = stacks.tensors(shape)
    if SELECTIONS[selected] is not None:
        arguments[1] = torch.full_like(arguments[1], SELECTIONS[selected])
    results = (
        stacks.results(stacks.on_backend(name, shape.m, masked=True), arguments) for name in (backend, "reference")
    )
    for actual, definition in zip(*results, strict=True):
        assert not actual.isnan().any()
        assert_close(actual, definition)


@pytest.mark.parametrize("z_grad", [None, "gated", "full"])
@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_a_stack_and_its_layers_one_by_one_have_the_same_gradient_where_z_is_0(backend, z_grad):
    """With `z_grad` given, and with the default of each."""
    shape = Shape(B=5, F=5, K=7, D=8, m=2, L=3)
    arguments, given = stacks.tensors(shape), {} if z_grad is None else {"z_grad": z_grad}

    def one_by_one(inputs, selection, *weights):
        layers, adapters = GeneratorWeights(*weights[:6]), AdapterWeights(*weights[6:])
        adapted, residual = None, "query"
        for weights_of_layer, adapter in zip(layers.layers(), adapters.layers(), strict=True):
            layer = InducingLayer(weights_of_layer, shape.m, residual, **given)
            inputs, residual = ops.inducing_layer(inputs, selection, layer, backend), "input"
            adapted = ops.adapter_layer(inputs, adapted, adapter, shape.m)
        return adapted

    def at_once(inputs, selection, *weights):
        stack = InducingStack(GeneratorWeights(*weights[:6]), AdapterWeights(*weights[6:]), shape.m, **given)
        return ops.inducing_stack(inputs, selection, stack, backend)

    results = [stacks.results(function, arguments) for function in (one_by_one, at_once)]
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)
    at_zero = results[0][2][arguments[1] == 0]
    assert at_zero.ne(0).any() if z_grad == "full" else at_zero.eq(0).all()


def test_the_adapters_of_one_layer_are_those_of_the_definition():
    _, _, *weights = stacks.tensors(Shape(B=1, F=1, K=1, D=6, m=3, T=4))
    adapter = AdapterWeights(*weights[6:]).layers()[0]
    shared, former = torch.randn(5, 7, 6, dtype=torch.float64), torch.randn(5, 4, 6, dtype=torch.float64)
    for before in (None, former):
        assert_close(ops.adapter_layer(shared, before, adapter, 3), reference.adapter_layer(shared, before, adapter, 3))
