"""The weights of a layer and of a stack, and how they are used: one argument for every backend.

K inducing points, T tasks, D embedding dimension. The tensors of a stack have a leading dimension L for its layers; the
tensors of one layer do not. The square weights' rows are outputs, as in `torch.nn.Linear`. Head ``j`` owns rows
``j * d_h`` to ``(j + 1) * d_h`` of the key and value weights, and those columns of the points, of the indicators and of
``output_weight``.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchrec_mtl.argument_types import check_type
from torchrec_mtl.errors import InputError, check_at_least
from torchrec_mtl.ops.shapes import check_heads, check_shape, sizes


class GeneratorWeights(NamedTuple):
    """Weights of ASRG, TAFE eq. (17)-(20). A tuple of tensors passes flat through custom ops and exports."""

    points: Tensor  # I [(L,) K, D]
    key_weight: Tensor  # Wk [(L,) D, D]
    value_weight: Tensor  # Wv [(L,) D, D]
    output_weight: Tensor  # Wo [(L,) D, D]
    norm_weight: Tensor  # of LayerNorm [(L,) D]
    norm_bias: Tensor  # [(L,) D]

    def layers(self) -> list["GeneratorWeights"]:
        """Splits the weights of a stack into the weights of its layers."""
        return unbind_generator(self)


class AdapterWeights(NamedTuple):
    """Weights of TSA, TAFE eq. (21)-(22). No parameter is shared by two tasks."""

    indicators: Tensor  # a [(L,) T, D]
    key_weight: Tensor  # [(L,) T, D, D]
    value_weight: Tensor  # [(L,) T, D, D]
    output_weight: Tensor  # [(L,) T, D, D]
    norm_weight: Tensor  # [(L,) T, D]
    norm_bias: Tensor  # [(L,) T, D]

    def layers(self) -> list["AdapterWeights"]:
        """Splits the weights of a stack into the weights of its layers."""
        return unbind_adapter(self)


def _unbound(weights: list[Tensor]) -> list[list[Tensor]]:
    """Splits tensors along their first dimension; in what TorchScript knows."""
    parts = [x.unbind(0) for x in weights]
    return [[part[i] for part in parts] for i in range(len(parts[0]))]


def unbind_generator(weights: GeneratorWeights) -> list[GeneratorWeights]:
    """Splits the weights of a stack into those of its layers, in what TorchScript knows."""
    points, wk, wv, wo, norm_weight, norm_bias = weights
    layers = _unbound([points, wk, wv, wo, norm_weight, norm_bias])
    return [GeneratorWeights(x[0], x[1], x[2], x[3], x[4], x[5]) for x in layers]


def unbind_adapter(weights: AdapterWeights) -> list[AdapterWeights]:
    """As `unbind_generator`; of the weights of one layer, into those of its tasks."""
    indicators, wk, wv, wo, norm_weight, norm_bias = weights
    layers = _unbound([indicators, wk, wv, wo, norm_weight, norm_bias])
    return [AdapterWeights(x[0], x[1], x[2], x[3], x[4], x[5]) for x in layers]


def check_generator(weights: GeneratorWeights, dim: int, *num_layers: int) -> int:
    """Checks the shapes of the weights of a layer, or of ``num_layers``, for inputs of width ``dim``; returns ``K``."""
    points, *squares, norm_weight, norm_bias = weights
    num_points = sizes("points", points, 2 + len(num_layers))[-2]
    check_shape("points", points, *num_layers, num_points, dim)
    for name, square in zip(weights._fields[1:4], squares, strict=True):
        check_shape(name, square, *num_layers, dim, dim)
    check_shape("norm_weight", norm_weight, *num_layers, dim)
    check_shape("norm_bias", norm_bias, *num_layers, dim)
    return num_points


def check_adapter(weights: AdapterWeights, dim: int, *num_layers: int) -> int:
    """As `check_generator`; returns ``T``."""
    indicators, *squares, norm_weight, norm_bias = weights
    num_tasks = sizes("indicators", indicators, 2 + len(num_layers))[-2]
    rows = (*num_layers, num_tasks, dim)
    check_shape("indicators", indicators, *rows)
    for name, square in zip(weights._fields[1:4], squares, strict=True):
        check_shape(name, square, *rows, dim)
    check_shape("norm_weight", norm_weight, *rows)
    check_shape("norm_bias", norm_bias, *rows)
    return num_tasks


def _check(num_heads: int, residual: str, z_grad: str) -> None:
    check_heads(num_heads)
    if residual not in ("input", "query", "none"):
        raise InputError(f"`residual` (={residual!r}) must be 'input', 'query' or 'none'")
    if z_grad not in ("gated", "full"):
        raise InputError(f"`z_grad` (={z_grad!r}) must be 'gated' or 'full'")


def key_bias(selection: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ``log z [B, K]``, -inf where z is 0, and whether a sample selects any point, ``[B, 1]``.

    The first is what the score of each point's row as a key gets where z masks. A sample that selects none has 0 there,
    and its attention must be multiplied by the second.
    """
    selected = selection != 0
    some = selected.any(1, keepdim=True)
    logarithm = torch.where(selected, selection, torch.ones_like(selection)).log()
    return logarithm.masked_fill(some & ~selected, float("-inf")), some


def gate(selection: Tensor, z_grad: str) -> Tensor:
    """Returns ``z``; with ``z_grad`` "gated" no gradient flows where it is 0."""
    return selection * (selection != 0) if z_grad == "gated" else selection


@dataclass(frozen=True)
class InducingLayer:
    """One feature interaction learning layer of ASRG, TAFE eq. (17)-(20).

    Args:
        weights: weights of one layer.
        num_heads: ``m``; must divide ``D``, ``d_h = D / m``.
        residual: what eq. (20) adds before LayerNorm: the ``"input"``, which must then have ``K`` rows; the
            ``"query"``; or ``"none"``.
        scale: factor of the scores; ``1 / sqrt(d_h)`` by default, as in eq. (18).
        z_grad: gradient of ``z`` where it is 0. ``"gated"``: none. It need not be computed, and behind a smooth step,
            whose slope is 0 there, it makes no difference. ``"full"``: the gradient of the equations.

    Raises:
        InputError: if ``residual`` or ``z_grad`` has another value, or ``num_heads`` is below 1.

    Example::

        >>> import torch
        >>> eye = torch.eye(4)
        >>> InducingLayer(GeneratorWeights(eye, eye, eye, eye, eye[0], eye[0]), num_heads=2, residual="sum")
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `residual` (='sum') must be 'input', 'query' or 'none'
    """

    weights: GeneratorWeights
    num_heads: int
    residual: str = "input"
    scale: float | None = None
    z_grad: str = "gated"

    def __post_init__(self) -> None:
        if not isinstance(self.weights, GeneratorWeights):
            raise InputError(f"`weights` (a {type(self.weights).__name__}) must be `GeneratorWeights`")
        if self.scale is not None:
            check_at_least(0, scale=self.scale)
        _check(self.num_heads, self.residual, self.z_grad)


@dataclass(frozen=True)
class InducingStack:
    """``L`` layers of ASRG with one selection and TSA's adapters on each, TAFE eq. (17)-(22).

    Args:
        layers: weights of ASRG's ``L`` layers.
        adapters: weights of TSA's ``L`` layers.
        num_heads: ``m``, heads of layers and adapters; must divide ``D``.
        residual: as in `InducingLayer`; with ``"input"`` the first layer, whose input has ``F`` rows and not ``K``,
            adds the query, as Set Transformer does.
        z_grad: as in `InducingLayer`.
        masked: what a point at z = 0 is to later layers and to the adapters. False: a row like the others, as eq. (17)
            to (22) have it. True: nothing, as section 4.4 says ("no interaction"): the score of every point's row as a
            key gets ``+ log z``, so a point leaves continuously as its z goes to 0. Where a sample selects no point,
            its attention to the points is 0. ``z`` must then not be negative, and ``z_grad`` be "gated".

    Raises:
        InputError: as in `InducingLayer`, or if ``masked`` with another ``z_grad`` than "gated".

    Example::

        >>> import torch
        >>> square, row = torch.randn(2, 4, 4), torch.ones(2, 4)
        >>> layers = GeneratorWeights(torch.randn(2, 3, 4), square, square, square, row, row)
        >>> square, row = torch.randn(2, 6, 4, 4), torch.ones(2, 6, 4)
        >>> stack = InducingStack(layers, AdapterWeights(row, square, square, square, row, row), num_heads=2)
        >>> [layer.residual for layer, _ in stack.unbind()]
        ['query', 'input']
    """

    layers: GeneratorWeights
    adapters: AdapterWeights
    num_heads: int
    residual: str = "input"
    z_grad: str = "gated"
    masked: bool = False

    def __post_init__(self) -> None:
        for name, kind in (("layers", GeneratorWeights), ("adapters", AdapterWeights)):
            if not isinstance(getattr(self, name), kind):
                raise InputError(f"`{name}` (a {type(getattr(self, name)).__name__}) must be `{kind.__name__}`")
        _check(self.num_heads, self.residual, self.z_grad)
        check_type("masked", self.masked, bool)
        if self.masked and self.z_grad != "gated":
            raise InputError(f"`z_grad` (={self.z_grad!r}) must be 'gated' where `masked`: log z has no slope at 0")

    @property
    def residuals(self) -> tuple[str, str]:
        """Residual of the first layer, and of the others."""
        return first_residual(self.residual), self.residual

    def unbind(self) -> list[tuple[InducingLayer, AdapterWeights]]:
        """Splits the stack into its layers and their adapters."""
        layers = unbind_layers(self.layers, self.num_heads, self.residual, self.z_grad)
        return list(zip(layers, self.adapters.layers(), strict=True))


def first_residual(residual: str) -> str:
    """Returns the first layer's residual: its input has ``F`` rows and not ``K``, so the query replaces it."""
    return "query" if residual == "input" else residual


def unbind_layers(
    weights: GeneratorWeights, num_heads: int, residual: str = "input", z_grad: str = "gated"
) -> list[InducingLayer]:
    """Splits ``weights [L, ...]`` into ``L`` layers; arguments as in `InducingStack`."""
    residuals = [first_residual(residual), *[residual] * (len(weights.points) - 1)]
    return [
        InducingLayer(layer, num_heads, layer_residual, z_grad=z_grad)
        for layer, layer_residual in zip(weights.layers(), residuals, strict=True)
    ]
