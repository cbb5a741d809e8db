"""What a layer and a stack are: weights and how they are used, in one argument for every backend."""

from dataclasses import dataclass

from torch import Tensor

from torchrec_mtl.errors import InputError
from torchrec_mtl.ops.inducing_attention.weights import AdapterWeights, GeneratorWeights


def _check(residual: str, z_grad: str) -> None:
    if residual not in ("input", "query", "none"):
        raise InputError(f"`residual` (={residual!r}) must be 'input', 'query' or 'none'")
    if z_grad not in ("gated", "full"):
        raise InputError(f"`z_grad` (={z_grad!r}) must be 'gated' or 'full'")


def gate(selection: Tensor, z_grad: str) -> Tensor:
    """``z`` itself; with ``z_grad`` "gated" no gradient flows where it is 0."""
    return selection * (selection != 0) if z_grad == "gated" else selection


@dataclass(frozen=True)
class InducingLayer:
    """One feature interaction learning layer of ASRG, TAFE eq. (17)-(20).

    Args:
        weights: of one layer.
        num_heads: ``m``; must divide ``D``, ``d_h = D / m``.
        residual: what is added before LayerNorm, eq. (20): the ``"input"``, which must then have ``K`` rows; the
            ``"query"``; or ``"none"``.
        scale: of the scores; ``1 / sqrt(d_h)`` by default, as in eq. (18).
        z_grad: the gradient of ``z`` where it is 0. ``"gated"``: none, which spares computing it, and changes
            nothing behind a smooth step, whose slope is 0 there. ``"full"``: that of the equations.

    Raises:
        InputError: if ``residual`` or ``z_grad`` is none of the above.

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
        _check(self.residual, self.z_grad)


@dataclass(frozen=True)
class InducingStack:
    """``L`` layers of ASRG with one selection and TSA's adapters on each, TAFE eq. (17)-(22).

    Args:
        layers: ASRG's weights, ``L`` layers.
        adapters: TSA's weights, ``L`` layers.
        num_heads: ``m``, of layers and adapters; must divide ``D``.
        residual: as in `InducingLayer`; where ``"input"`` asks for a layer's input, the first layer, whose input has
            ``F`` rows and not ``K``, adds the query as Set Transformer does.
        z_grad: as in `InducingLayer`.

    Raises:
        InputError: as in `InducingLayer`.

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

    def __post_init__(self) -> None:
        _check(self.residual, self.z_grad)

    @property
    def residuals(self) -> tuple[str, str]:
        """The first layer's, and the others'."""
        return first_residual(self.residual), self.residual

    def unbind(self) -> list[tuple[InducingLayer, AdapterWeights]]:
        """Layer by layer."""
        layers = unbind_layers(self.layers, self.num_heads, self.residual, self.z_grad)
        return list(zip(layers, self.adapters.layers(), strict=True))


def first_residual(residual: str) -> str:
    """The first layer's: its input has ``F`` rows and not ``K``, so where that would be added, the query is."""
    return "query" if residual == "input" else residual


def unbind_layers(
    weights: GeneratorWeights, num_heads: int, residual: str = "input", z_grad: str = "gated"
) -> list[InducingLayer]:
    """The layers of ``weights [L, ...]``, one by one; arguments as in `InducingStack`."""
    own = [first_residual(residual), *[residual] * (len(weights.points) - 1)]
    return [
        InducingLayer(layer, num_heads, of_layer, z_grad=z_grad)
        for layer, of_layer in zip(weights.layers(), own, strict=True)
    ]
