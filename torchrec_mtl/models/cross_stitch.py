"""Cross-stitch networks for multi-task learning (Misra et al., CVPR 2016, arXiv 1604.03539)."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from torchrec_mtl.models.base import FlatModel
from torchrec_mtl.modules import CrossStitchLayer, TaskTowers


class CrossStitchArch(nn.Module):
    """A network a task on the same input, its activations mixed after every layer, then a tower a task.

    The paper stitches two networks that were trained apart, and gives the units' ``alpha`` 100 to 1000 times the
    networks' learning rate; here all starts at once and learns at one rate.

    Args:
        in_features: width of the flattened embeddings, ``F * D``.
        num_tasks: ``T``.
        layer_sizes: the networks' layers, ReLU and a `CrossStitchUnit` after each.
        tower_layer_sizes: hidden layers of each tower, which are not mixed.
        dropout: probability of dropping a tower's hidden unit in training.
        stitch: one ``alpha`` per ``"channel"``, as in the paper, or per ``"layer"``, see `CrossStitchUnit`.

    Raises:
        InputError: if ``stitch`` is neither.

    Example::

        >>> import torch
        >>> CrossStitchArch(in_features=6 * 8, num_tasks=3)(torch.randn(2, 6, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        in_features: int,
        num_tasks: int,
        layer_sizes: Sequence[int] = (256, 128),
        tower_layer_sizes: Sequence[int] = (64,),
        dropout: float = 0.0,
        stitch: Literal["channel", "layer"] = "channel",
    ) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        widths = [in_features, *layer_sizes]
        self.layers = nn.ModuleList(
            CrossStitchLayer(num_tasks, width, size, stitch) for width, size in zip(widths, layer_sizes, strict=False)
        )
        self.towers = TaskTowers(num_tasks, widths[-1], tower_layer_sizes, dropout)

    def forward(self, embeddings: Tensor) -> Tensor:
        """``[B, F, D]`` or ``[B, F * D]`` to logits ``[B, T]``."""
        activations = [embeddings.flatten(1)] * self.num_tasks
        for layer in self.layers:
            activations = layer(activations)
        return self.towers(activations)


class CrossStitch(FlatModel):
    """`CrossStitchArch` on the embeddings.

    Args: those of `FlatModel`, then `CrossStitchArch`'s.

    Raises:
        InputError: if ``stitch`` is neither ``"channel"`` nor ``"layer"``.
    """

    over_arch_class = CrossStitchArch
