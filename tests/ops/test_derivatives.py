"""Forward-mode and second derivatives are those of the reference, or are refused in one sentence."""

import functools

import pytest
import torch

from torchrec_mtl.errors import InputError
from torchrec_mtl.ops import library
from torchrec_mtl.ops.attention import attention
from torchrec_mtl.ops.inducing_attention import AdapterWeights, GeneratorWeights, InducingStack, inducing_stack

built = pytest.mark.skipif(not library.path().is_file(), reason="the C++ kernels are not built")


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def between(queries, inputs, wq, wk, wv, *, backend):
    return attention(queries, inputs, wq, wk, wv, 2, backend=backend)


def within(fields, wq, wk, wv, *, backend):
    return attention(fields, fields, wq, wk, wv, 2, backend=backend)


def stacked(inputs, selection, *weights, backend, z_grad="gated"):
    layers, adapters = GeneratorWeights(*weights[:6]), AdapterWeights(*weights[6:])
    return inducing_stack(
        inputs, selection, InducingStack(layers, adapters, num_heads=2, z_grad=z_grad), backend=backend
    )


LAYER = [(2, 4, 4)] * 3 + [(2, 4)] * 2
ADAPTER = [(2, 3, 4), *[(2, 3, 4, 4)] * 3, *[(2, 3, 4)] * 2]
STACK = [(5, 7, 4), (5, 3), (2, 3, 4), *LAYER, *ADAPTER]
CASES = {
    "between": (between, [(5, 2, 4), (5, 6, 4), *[(4, 4)] * 3]),
    "within": (within, [(5, 6, 4), *[(4, 4)] * 3]),
    "stack": (stacked, STACK),
    "stack_full": (functools.partial(stacked, z_grad="full"), STACK),
}
every_case = pytest.mark.parametrize("case", CASES)


def function_and_arguments(case):
    torch.manual_seed(0)
    function, shapes = CASES[case]
    arguments = [normal(*shape) for shape in shapes]
    if case.startswith("stack"):
        arguments[1] = arguments[1].relu()  # some points are not selected
    return function, arguments


@every_case
def test_forward_mode_is_the_references(case):
    function, arguments = function_and_arguments(case)
    tangents = tuple(torch.randn_like(x) for x in arguments)
    found, expected = (
        torch.func.jvp(functools.partial(function, backend=backend), tuple(arguments), tangents)
        for backend in ("auto", "reference")
    )
    assert expected[1].any()
    torch.testing.assert_close(found, expected)


@built
@every_case
def test_backends_without_forward_mode_refuse(case):
    function, arguments = function_and_arguments(case)
    for backend in ("cpp", "sdpa", "compact", "triton") if case.startswith("stack") else ("cpp",):
        with pytest.raises(InputError, match="forward-mode derivatives"):
            torch.func.jvp(functools.partial(function, backend=backend), tuple(arguments), tuple(arguments))


@built
@every_case
@pytest.mark.parametrize("frozen", [False, True])
def test_second_derivatives_are_the_references(case, frozen):
    function, arguments = function_and_arguments(case)
    trained = arguments[:1] if frozen else arguments

    def second(backend):
        for x in trained:
            x.requires_grad_()
        first = torch.autograd.grad(function(*arguments, backend=backend).square().sum(), trained, create_graph=True)
        return first, torch.autograd.grad(sum(x.square().sum() for x in first), trained)

    torch.testing.assert_close(second("cpp"), second("reference"))


@pytest.mark.parametrize("backend", ["sdpa", "compact", "triton"])
def test_backends_without_second_derivatives_refuse(backend):
    function, arguments = function_and_arguments("stack")
    trained = [x.float().requires_grad_() for x in arguments]
    loss = function(*trained, backend=backend).square().sum()
    first = torch.autograd.grad(loss, trained, create_graph=True)
    expected = torch.autograd.grad(function(*trained, backend="reference").square().sum(), trained)
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-4)
    for wanted in (trained[:1], trained[2:3], trained[5:6]):  # inputs, queries and values
        with pytest.raises(InputError, match="`backend` must be 'reference' for second derivatives"):
            torch.autograd.grad(sum(x.square().sum() for x in first), wanted, retain_graph=True)
