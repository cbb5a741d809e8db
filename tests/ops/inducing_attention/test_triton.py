"""The Triton kernels against the definition in float64: in Triton's interpreter, or on a GPU if there is one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.ops.inducing_attention import stacks
from tests.ops.inducing_attention.stacks import Shape
from torchrec_mtl import ops
from torchrec_mtl.errors import InputError
from torchrec_mtl.ops import GeneratorWeights, InducingLayer
from torchrec_mtl.ops.inducing_attention import reference, triton

pytest.importorskip("triton")

from tests.ops.inducing_attention import interpreting

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [  # one and several tiles of fields, points and adapters' queries; odd sizes; a chunk that is not full
    Shape(B=6, F=7, K=6, D=18, m=2, T=3),
    Shape(B=3, F=3, K=37, D=9, m=1, T=1),
    Shape(B=2, F=35, K=5, D=8, m=8, L=1, T=3),
    Shape(B=1, F=1, K=1, D=8, m=1, T=1),
]


@pytest.fixture(autouse=True)
def quick_interpreter_and_poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninitialised memory is NaN, or an index far out of range."""
    interpreting.patch_once(monkeypatch)
    new_empty, empty_like = torch.Tensor.new_empty, torch.empty_like

    def poison(x: Tensor) -> Tensor:
        return x.fill_(float("nan") if x.is_floating_point() else 1 << 30)

    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *args, **kwargs: poison(new_empty(*args, **kwargs)))
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: poison(empty_like(*args, **kwargs)))


def check(
    run: Callable[..., Tensor],
    definition: Callable[..., Tensor],
    arguments: list[Tensor],
    dtype: torch.dtype = torch.float32,
    tolerance: float = 3e-6,
) -> None:
    """The errors of the output and every gradient are at most twice those of the definition in the same precision."""
    expected = stacks.results(definition, arguments, torch.float64, DEVICE)
    eager = stacks.results(definition, arguments, dtype, DEVICE)
    for one, other, exact in zip(stacks.results(run, arguments, dtype, DEVICE), eager, expected, strict=True):
        assert stacks.error(one, exact) <= 2 * stacks.error(other, exact) + tolerance


def check_stack(shape: Shape, residual: str = "input", z_grad: str = "gated", active: float = 0.4) -> None:
    arguments = stacks.tensors(shape, active)
    run = stacks.stack(triton.inducing_stack, shape.m, residual, z_grad)
    definition = stacks.stack(reference.inducing_stack, shape.m, residual, z_grad)
    check(run, definition, arguments)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_stack_and_its_gradients_are_those_of_the_definition(shape: Shape) -> None:
    check_stack(shape)


@pytest.mark.parametrize(("residual", "z_grad"), [("query", "gated"), ("none", "full"), ("input", "full")])
def test_every_residual_and_gradient_of_z(residual: str, z_grad: str) -> None:
    check_stack(Shape(B=4, F=5, K=7, D=8, m=2), residual, z_grad)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        Shape(B=1, F=1000, K=4, D=8, m=2, L=1),
        Shape(B=1, F=3, K=256, D=16, m=1, L=1, T=1),
        Shape(B=2, F=4, K=9, D=128, m=8, L=1),
        Shape(B=2, F=6, K=40, D=40, m=4, L=2, T=5),
    ],
)
def test_large_sizes(shape: Shape) -> None:
    check_stack(shape)


@pytest.mark.parametrize(("residual", "fields"), [("input", 9), ("query", 5), ("none", 5)])
@pytest.mark.parametrize("z_grad", ["gated", "full"])
def test_one_layer(residual: str, fields: int, z_grad: str) -> None:
    shape = Shape(B=4, F=fields, K=9, D=12, m=3, L=1)
    inputs, z, *weights = stacks.tensors(shape)
    arguments = [inputs, z, *(x[0] for x in weights[: stacks.NUM_GENERATOR])]

    def run(inputs: Tensor, selection: Tensor, *weights: Tensor) -> Tensor:
        layer = InducingLayer(GeneratorWeights(*weights), shape.m, residual, 0.3, z_grad)
        return ops.inducing_layer(inputs, selection, layer, "triton")

    definition = stacks.reference_layer(shape.m, residual, 0.3, z_grad)
    check(run, definition, arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_error_is_at_most_twice_that_of_the_definition(dtype: torch.dtype) -> None:
    shape = Shape(B=4, F=6, K=10, D=16, m=2, T=1)
    arguments = [x.to(dtype).double() for x in stacks.tensors(shape)]
    run = stacks.stack(triton.inducing_stack, shape.m, "input", "gated")
    definition = stacks.stack(reference.inducing_stack, shape.m, "input", "gated")
    check(run, definition, arguments, dtype, 1e-4)


def test_tf32_is_rounded_to() -> None:
    shape = Shape(B=4, F=6, K=10, D=16, m=2, T=1)
    run = stacks.stack(triton.inducing_stack, shape.m, "input", "gated")
    definition = stacks.stack(reference.inducing_stack, shape.m, "input", "gated")
    arguments = stacks.tensors(shape)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        found = stacks.results(run, arguments, torch.float32, DEVICE)
        nan = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)  # CUDA's
        inputs, *others = (x.float() for x in arguments)
        inputs[0, 0, 0] = nan
        assert run(*(x.to(DEVICE) for x in (inputs, *others)))[0].isnan().all()
    finally:
        torch.set_float32_matmul_precision(precision)
    errors = [*map(stacks.error, found, stacks.results(definition, arguments, torch.float64, DEVICE))]
    assert 1e-5 < errors[0] < max(errors) < 2e-3


def test_without_gradients_the_output_is_the_same() -> None:
    shape = Shape(B=5, F=3, K=4, D=8, m=1, T=1)
    arguments = [x.to(DEVICE, torch.float32) for x in stacks.tensors(shape)]
    run = stacks.stack(triton.inducing_stack, shape.m, "input", "gated")
    expected = run(*(x.clone().requires_grad_() for x in arguments))
    with torch.no_grad():
        assert torch.equal(run(*arguments), expected)


def test_tafe_takes_it_by_name() -> None:
    stacks.assert_tafe_computes_the_equations_by("triton", 8, DEVICE)


def test_an_empty_batch() -> None:
    arguments = stacks.tensors(Shape(B=0, F=3, K=4, D=8, m=2, T=3))
    run = stacks.stack(triton.inducing_stack, 2, "input", "gated")
    output, *gradients = stacks.results(run, arguments, torch.float32, DEVICE)
    assert output.shape == (0, 3, 8)
    assert all(torch.equal(x, torch.zeros(y.shape)) for x, y in zip(gradients, arguments, strict=True))


def test_what_the_kernels_cannot_take_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, z, *weights = (x.float().to(DEVICE) for x in stacks.tensors(Shape(B=2, F=3, K=4, D=8, m=2)))
    run = stacks.stack(triton.inducing_stack, 2, "input", "gated")
    with pytest.raises(InputError, match=r"`selection` \(of shape \[2, 3\]\) must be \[2, 4\]"):
        run(inputs, z[:, :3], *weights)
    with pytest.raises(
        InputError, match=r"computes in float32, bfloat16 and float16, and the inputs are torch\.float64"
    ):
        run(inputs.double(), z, *weights)
    with pytest.raises(InputError, match=r"the stack's tensors have the shapes"):
        run(inputs, z, *weights[:4], weights[4][:, :5], *weights[5:])
    with pytest.raises(InputError, match=r"`num_heads` \(=3\) must divide the embedding dimension \(=8\)"):
        stacks.stack(triton.inducing_stack, 3, "input", "gated")(inputs, z, *weights)
    with pytest.raises(InputError, match=r"`masked` \(=True\) must be False for the backend 'triton'"):
        stacks.stack(triton.inducing_stack, 2, "input", "gated", masked=True)(inputs, z, *weights)
    layer = InducingLayer(GeneratorWeights(*(x[0] for x in weights[: stacks.NUM_GENERATOR])), 2)
    with pytest.raises(InputError, match="the 'input' as residual must have 4 rows, not 3"):
        triton.inducing_layer(inputs, z, layer)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(InputError, match="'triton' cannot be used: it runs on a GPU, and the inputs are on 'cpu'"):
        run(*(x.cpu() for x in (inputs, z, *weights)))
    monkeypatch.setattr(triton, "_INSTALLED", False)
    with pytest.raises(InputError, match="'triton' cannot be used: Triton is not installed"):
        run(inputs, z, *weights)
