"""Cross-stitch networks for multi-task learning (Misra et al., CVPR 2016, arXiv 1604.03539)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least, check_sizes
from torchrec_mtl.models.base import MultiTaskModel
from torchrec_mtl.modules import (
    CrossStitchLayer,
    FeatureArch,
    TaskTowers,
    as_features,
    give_heads,
    initialize_linear_layers,
)
from torchrec_mtl.tasks import TaskForest


class CrossStitchArch(nn.Module):
    """One network per task on the same input, with activations mixed after every layer, then one tower per task.

    The paper stitches two networks that were trained separately, and trains the units' ``alpha`` at 100 to 1000 times
    the learning rate of the networks. Here all parts are trained together from the start, at one learning rate.

    Args:
        in_features: width of the flattened embeddings, ``F * D``.
        num_tasks: number of tasks, ``T``.
        layer_sizes, tower_layer_sizes, dropout, stitch: see `CrossStitch`.

    Raises:
        InputError: see `CrossStitch`.

    Example::

        >>> CrossStitchArch(in_features=6 * 8, num_tasks=3)(torch.randn(2, 6, 8)).shape
        torch.Size([2, 3])
    """

    @checked
    def __init__(
        self,
        in_features: int,
        num_tasks: int,
        *,
        layer_sizes: Sequence[int] = (256, 128),
        tower_layer_sizes: Sequence[int] = (64,),
        dropout: float = 0.0,
        stitch: Literal["channel", "layer"] = "channel",
    ) -> None:
        super().__init__()
        check_at_least(1, num_tasks=num_tasks, in_features=in_features)
        check_sizes(layer_sizes=layer_sizes)
        self.num_tasks = num_tasks
        widths = [in_features, *layer_sizes]
        self.layers = nn.ModuleList(
            CrossStitchLayer(num_tasks, width, size, stitch) for width, size in zip(widths, layer_sizes, strict=False)
        )
        self.towers = TaskTowers(num_tasks, widths[-1], tower_layer_sizes, dropout)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Maps ``[B, F, D]`` or ``[B, F * D]`` to logits ``[B, T]``."""
        activations = [embeddings.flatten(1)] * self.num_tasks
        for layer in self.layers:
            activations = layer(activations)
        return self.towers(activations)

    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """See `MultiTaskModel`."""
        self.towers.start_from_base_rates(base_rates)


class CrossStitch(MultiTaskModel):
    """`CrossStitchArch` on top of the features.

    Args:
        features: a `FeatureArch`, or a bare embedding bag collection where there are no dense features.
        tasks: the ``T`` tasks.
        layer_sizes: layer widths of each network; a ReLU and a `CrossStitchUnit` follow every layer.
        tower_layer_sizes: hidden layer widths of each tower; these layers are not mixed.
        dropout: probability of dropping a hidden unit of a tower during training.
        stitch: whether there is one mixing matrix ``alpha`` per ``"channel"``, as in the paper, or per ``"layer"``, see
            `CrossStitchUnit`.

    Raises:
        InputError: if ``stitch`` is neither ``"channel"`` nor ``"layer"``, a layer width is below 1, or ``dropout`` is
            not between 0 and 1.
    """

    @checked
    def __init__(
        self,
        features: FeatureArch | nn.Module,
        tasks: TaskForest,
        *,
        layer_sizes: Sequence[int] = (256, 128),
        tower_layer_sizes: Sequence[int] = (64,),
        dropout: float = 0.0,
        stitch: Literal["channel", "layer"] = "channel",
    ) -> None:
        super().__init__()
        self.features = as_features(features)
        with torch.device(self.features.dense_device):
            self.over_arch = CrossStitchArch(
                self.features.out_features,
                len(tasks),
                layer_sizes=layer_sizes,
                tower_layer_sizes=tower_layer_sizes,
                dropout=dropout,
                stitch=stitch,
            )
        initialize_linear_layers(self.over_arch)
        give_heads(self.over_arch, tasks)
