"""Stacks of TAFE's layers and adapters for tests: weights, selections of every kind, outputs and gradients."""
# ruff: noqa: N806  (the shapes' letters)

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from torchrec_mtl import ops
from torchrec_mtl.ops import AdapterWeights, GeneratorWeights, InducingLayer, InducingStack
from torchrec_mtl.ops.inducing_attention import reference

BACKENDS = ["sdpa", "compact", "cpp"]  # of the CPU, besides the reference
NUM_GENERATOR = len(GeneratorWeights._fields)


class Shape(NamedTuple):
    """Samples, fields, points, embedding dimension, heads, layers, tasks."""

    B: int
    F: int
    K: int
    D: int
    m: int
    L: int = 2
    T: int = 2


SMALL = Shape(B=9, F=5, K=8, D=6, m=2)
SHAPES = [
    Shape(B=4, F=1, K=1, D=8, m=1),
    Shape(B=3, F=20, K=5, D=33, m=3, L=3, T=1),
    Shape(B=9, F=20, K=64, D=18, m=2, L=4),
    Shape(B=5, F=63, K=5, D=18, m=1, L=1, T=4),
    Shape(B=2, F=1000, K=5, D=8, m=2),
    Shape(B=17, F=3, K=8, D=6, m=3, T=3),
    Shape(B=0, F=5, K=4, D=6, m=2),
]


def selections(batch: int, points: int, active: float, generator: torch.Generator) -> Tensor:
    """Random selections; the second sample selects no point, the third all with 1, the fourth a single one."""
    z = torch.rand(batch, points, generator=generator, dtype=torch.float64) + 0.1
    z = z * (torch.rand(batch, points, generator=generator) < active)
    for sample, value in zip(range(1, batch), (0.0, 1.0, 0.0), strict=False):
        z[sample] = value
    if batch > 3:
        z[3, points // 2] = 0.7
    return z


def tensors(shape: Shape, active: float = 0.4, seed: int = 0) -> list[Tensor]:
    """Inputs, selection, weights of the layers and weights of the adapters, in float64."""
    generator = torch.Generator().manual_seed(seed)
    B, F, K, D, _, L, T = shape

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    def square(*lead: int) -> list[Tensor]:
        return [normal(*lead, D, D) / D**0.5 for _ in range(3)]

    def norm(*lead: int) -> list[Tensor]:
        return [1 + 0.1 * normal(*lead, D), 0.1 * normal(*lead, D)]

    inputs = [normal(B, F, D), selections(B, K, active, generator)]
    layers = [normal(L, K, D), *square(L), *norm(L)]
    return [*inputs, *layers, normal(L, T, D), *square(L, T), *norm(L, T)]


def small_tensors(batch: int = SMALL.B, active: float = 0.4, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """`tensors` of the shape `SMALL`, or of another batch."""
    return [x.to(dtype) for x in tensors(SMALL._replace(B=batch), active)]


def stack(
    function: Callable[..., Tensor], heads: int, residual: str, z_grad: str, masked: bool = False
) -> Callable[..., Tensor]:
    """Makes ``function`` of a stack a function of a flat list of tensors."""

    def run(inputs: Tensor, selection: Tensor, *weights: Tensor) -> Tensor:
        layers, adapters = GeneratorWeights(*weights[:NUM_GENERATOR]), AdapterWeights(*weights[NUM_GENERATOR:])
        return function(inputs, selection, InducingStack(layers, adapters, heads, residual, z_grad, masked))

    return run


def on_backend(
    backend: str, heads: int = SMALL.m, residual: str = "input", z_grad: str = "gated", masked: bool = False
) -> Callable[..., Tensor]:
    """`ops.inducing_stack` as a function of a flat list of tensors."""
    return stack(partial(ops.inducing_stack, backend=backend), heads, residual, z_grad, masked)


def reference_layer(heads: int, residual: str, scale: float | None, z_grad: str) -> Callable[..., Tensor]:
    """The definition of one layer, as a function of a flat list of tensors."""

    def run(inputs: Tensor, selection: Tensor, *weights: Tensor) -> Tensor:
        layer = InducingLayer(GeneratorWeights(*weights), heads, residual, scale, z_grad)
        return reference.inducing_layer(inputs, selection, layer)

    return run


def results(
    function: Callable[..., Tensor], arguments: list[Tensor], dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> list[Tensor]:
    """The output and every gradient, as float64, for a random upstream gradient that is the same for all functions."""
    leaves = [x.to(device, dtype).requires_grad_() for x in arguments]
    output = function(*leaves)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(device, output.dtype)
    gradients = torch.autograd.grad(output, leaves, upstream, allow_unused=True, materialize_grads=True)
    return [x.detach().to("cpu", torch.float64) for x in (output, *gradients)]


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Checks float64 results, with a tolerance relative to the largest number."""
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11 * max(largest, 1.0))


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative error in the Euclidean norm; absolute where the norm is below 1, because a gradient may be 0."""
    return float((actual - expected).norm() / expected.norm().clamp_min(1.0))


def assert_tafe_computes_the_equations_by(backend: str, dim: int, device: str) -> None:
    """Checks a model's output and gradients on a backend against the modules of the equations."""
    from torchrec_mtl.models.tafe import TAFEArch  # needs TorchRec, as nothing else here does

    torch.manual_seed(0)
    fields = torch.randn(3, 3, dim, device=device)
    model, definition = (
        TAFEArch(3, dim, num_tasks=2, num_layers=2, num_inducing_points=3, num_heads=2, backend=name)
        for name in (backend, "modules")
    )
    definition.load_state_dict(model.state_dict())
    outputs = [x.to(device)(fields) for x in (model, definition)]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    for output in outputs:
        output.sum().backward()
    for one, other in zip(model.parameters(), definition.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)


def assert_it_compiles_whole(run: Callable[..., Tensor], leaves: list[Tensor]) -> None:
    """Checks that the compiled function has no graph break, and the same bits forward and backward."""
    expected = run(*leaves)
    actual = torch.compile(run, fullgraph=True, backend="aot_eager")(*leaves)
    assert torch.equal(actual, expected)
    one, other = (torch.autograd.grad(x.float().square().sum(), leaves) for x in (actual, expected))
    assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def assert_it_exports_with_a_dynamic_batch(run: Callable[..., Tensor], leaves: list[Tensor]) -> None:
    """Checks that the exported program gives the same bits at another batch size."""

    class Stack(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterList(x.detach() for x in leaves[2:])

        def forward(self, inputs: Tensor, selection: Tensor) -> Tensor:
            return run(inputs, selection, *self.weights)

    batch = torch.export.Dim("batch")
    inputs, selection = (x.detach() for x in leaves[:2])
    program = torch.export.export(Stack(), (inputs, selection), dynamic_shapes=({0: batch}, {0: batch}))
    with torch.no_grad():
        assert torch.equal(program.module()(inputs[:2], selection[:2]), run(*leaves)[:2])


class StackModule(torch.nn.Module):
    """A stack of the shape `SMALL` on a backend."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.run = on_backend(backend)
        self.weights = torch.nn.ParameterList(small_tensors()[2:])

    def forward(self, inputs: Tensor, selection: Tensor) -> Tensor:
        return self.run(inputs, selection, *self.weights)
