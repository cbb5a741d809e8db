"""TAFE's adaptive sample-wise representation generator (ASRG), section 3.1, and its ablation."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from torchrec_mtl import ops
from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least, check_choice
from torchrec_mtl.modules.attention import Attention, check_heads
from torchrec_mtl.modules.dynamic_selector import DynamicSelector, Schedule, SmoothStepSchedule
from torchrec_mtl.modules.initialization import reset_attention
from torchrec_mtl.ops.inducing_attention import reference


@torch.fx.wrap  # a traced tensor of weights cannot be split into its layers
def _generate(
    fields: Tensor,
    selections: list[Tensor],
    weights: ops.GeneratorWeights,
    num_heads: int,
    residual: str,
    masked: bool,
) -> list[Tensor]:
    return reference.generate(fields, selections, weights, num_heads, residual, "gated", masked)


class RepresentationGenerator(nn.Module):
    """ASRG, TAFE eq. (14)-(20): ``L`` layers of inducing points, from which each sample selects.

    Args:
        num_fields: number of fields, ``F``.
        embedding_dim: embedding dimension, ``D``.
        num_layers: number of layers, ``L``.
        num_heads: number of heads, ``m``; must divide ``D``.
        num_inducing_points: number of inducing points, ``K``.
        selector: ``"shared"``, one selector for all layers (section 4.4 speaks of the selector of a sample); or
            ``"per_layer"``, one for each layer, still on the input fields.
        selector_layer_sizes: hidden layer widths of the selector's MLP, see `DynamicSelector`.
        schedule: schedule of the smooth step, see `DynamicSelector`.
        residual: term added in eq. (20). ``"input"`` adds the layer's input where the shapes allow it, from the second
            layer on; in the first layer, whose input has ``F`` rows instead of ``K``, it adds the query, like Set
            Transformer. ``"query"`` and ``"none"`` apply to every layer.
        selection: what a point at z = 0 is to the next layer and to the adapters, ``"keys"`` or ``"mask"``, see
            `torchrec_mtl.models.TAFE`.

    Raises:
        InputError: if a number is below 1, ``selector``, ``residual`` or ``selection`` is none of the values above, or
            ``num_heads`` does not divide ``embedding_dim``.

    Example::

        >>> generator = RepresentationGenerator(num_fields=6, embedding_dim=8, num_layers=3, num_inducing_points=5)
        >>> [tuple(y.shape) for y in generator(torch.randn(2, 6, 8))]
        [(2, 5, 8), (2, 5, 8), (2, 5, 8)]
    """

    @checked
    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        num_layers: int = 4,
        num_heads: int = 2,
        num_inducing_points: int = 64,
        selector: Literal["shared", "per_layer"] = "shared",
        selector_layer_sizes: Sequence[int] = (64,),
        schedule: Schedule = SmoothStepSchedule(),
        residual: Literal["input", "query", "none"] = "input",
        selection: Literal["keys", "mask"] = "keys",
    ) -> None:
        super().__init__()
        check_at_least(1, num_fields=num_fields, embedding_dim=embedding_dim, num_layers=num_layers)
        check_choice("selector", selector, ("shared", "per_layer"))
        check_choice("residual", residual, ("input", "query", "none"))
        check_choice("selection", selection, ("keys", "mask"))
        check_heads(embedding_dim, num_heads)
        self.num_layers, self.num_heads, self.residual = num_layers, num_heads, residual
        self.selection_is_shared, self.masked = selector == "shared", selection == "mask"
        self.selectors = nn.ModuleList(
            DynamicSelector(num_fields * embedding_dim, num_inducing_points, selector_layer_sizes, schedule)
            for _ in range(1 if selector == "shared" else num_layers)
        )
        square, row = (num_layers, embedding_dim, embedding_dim), (num_layers, embedding_dim)
        self.points = nn.Parameter(torch.empty(num_layers, num_inducing_points, embedding_dim))
        self.key_weight = nn.Parameter(torch.empty(square))
        self.value_weight = nn.Parameter(torch.empty(square))
        self.output_weight = nn.Parameter(torch.empty(square))
        self.norm_weight = nn.Parameter(torch.empty(row))
        self.norm_bias = nn.Parameter(torch.empty(row))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the initial values as in `reset_attention`; the selectors reset themselves."""
        reset_attention(*self.weights())

    def weights(self) -> ops.GeneratorWeights:
        """Returns the weights of all layers."""
        squares = (self.key_weight, self.value_weight, self.output_weight)
        return ops.GeneratorWeights(self.points, *squares, self.norm_weight, self.norm_bias)

    def select(self, fields: Tensor) -> list[Tensor]:
        """Returns ``z [B, K]`` of each layer, computed from the input fields ``H [B, F, D]``."""
        selections = [selector(fields.flatten(1)) for selector in self.selectors]
        return selections * self.num_layers if self.selection_is_shared else selections

    def forward(self, fields: Tensor) -> list[Tensor]:
        """Maps ``H [B, F, D]`` to ``[Y^1, ..., Y^L]``, each ``[B, K, D]``: the equations as printed.

        With ``selection`` "mask" z of each layer, ``[B, K]``, comes after them.
        """
        return _generate(fields, self.select(fields), self.weights(), self.num_heads, self.residual, self.masked)


class SelfAttentionStack(nn.Module):
    """Replaces ASRG in the ablation "TAFE w/o ASRG": plain self-attention over the fields, without selection.

    Args:
        embedding_dim: embedding dimension, ``D``.
        num_layers: number of layers, ``L``.
        num_heads: number of heads, ``m``; must divide ``D``.

    Raises:
        InputError: if a number is below 1, or ``num_heads`` does not divide ``embedding_dim``.
    """

    @checked
    def __init__(self, embedding_dim: int, num_layers: int, num_heads: int) -> None:
        super().__init__()
        check_at_least(1, num_layers=num_layers)
        check_heads(embedding_dim, num_heads)
        self.layers = nn.ModuleList(
            Attention(embedding_dim, num_heads, output_projection=True) for _ in range(num_layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(embedding_dim) for _ in range(num_layers))

    def forward(self, fields: Tensor) -> list[Tensor]:
        """Maps ``H [B, F, D]`` to ``[Y^1, ..., Y^L]``, each ``[B, F, D]``."""
        representations = []
        inputs = fields
        for layer, norm in zip(self.layers, self.norms, strict=True):
            inputs = norm(inputs + layer(inputs, inputs))
            representations.append(inputs)
        return representations
