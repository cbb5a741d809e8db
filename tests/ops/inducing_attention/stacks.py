"""Stacks of TAFE's layers and adapters for tests: weights, masks of every kind, outputs and gradients."""
# ruff: noqa: N806  (the shapes' letters)

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torchrec_mtl.ops.inducing_attention import reference
from torchrec_mtl.ops.inducing_attention.stack import InducingLayer, InducingStack
from torchrec_mtl.ops.inducing_attention.weights import AdapterWeights, GeneratorWeights

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


def selections(batch: int, points: int, active: float, generator: torch.Generator) -> Tensor:
    """Random ones; after the first sample one with all points at 0, one with all at 1, one with a single point."""
    z = torch.rand(batch, points, generator=generator, dtype=torch.float64) + 0.1
    z = z * (torch.rand(batch, points, generator=generator) < active)
    for sample, value in zip(range(1, batch), (0.0, 1.0, 0.0), strict=False):
        z[sample] = value
    if batch > 3:
        z[3, points // 2] = 0.7
    return z


def tensors(shape: Shape, active: float = 0.4, seed: int = 0) -> list[Tensor]:
    """float64: inputs, selection, the layers' weights, the adapters' weights."""
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


def stack(function: Callable[..., Tensor], heads: int, residual: str, z_grad: str) -> Callable[..., Tensor]:
    """A stack's function of a flat list of tensors."""

    def run(inputs: Tensor, selection: Tensor, *weights: Tensor) -> Tensor:
        layers, adapters = GeneratorWeights(*weights[:NUM_GENERATOR]), AdapterWeights(*weights[NUM_GENERATOR:])
        return function(inputs, selection, InducingStack(layers, adapters, heads, residual, z_grad))

    return run


def reference_layer(heads: int, residual: str, scale: float | None, z_grad: str) -> Callable[..., Tensor]:
    """One layer's definition, of a flat list of tensors."""

    def run(inputs: Tensor, selection: Tensor, *weights: Tensor) -> Tensor:
        layer = InducingLayer(GeneratorWeights(*weights), heads, residual, scale, z_grad)
        return reference.inducing_layer(inputs, selection, layer)

    return run


def results(function: Callable[..., Tensor], arguments: list[Tensor], dtype: torch.dtype, device: str) -> list[Tensor]:
    """The output and every gradient, for a random upstream gradient that is the same for all functions; in float64."""
    leaves = [x.to(device, dtype).requires_grad_() for x in arguments]
    output = function(*leaves)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(device, output.dtype)
    gradients = torch.autograd.grad(output, leaves, upstream, allow_unused=True, materialize_grads=True)
    return [x.detach().to("cpu", torch.float64) for x in (output, *gradients)]


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative, in the Euclidean norm; absolute where less than 1 is expected, as a gradient may be 0."""
    return float((actual - expected).norm() / expected.norm().clamp_min(1.0))
