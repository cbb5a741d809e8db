"""Shared-Bottom: one representation for all tasks, one tower for each (Caruana 1997; TAFE section 4.1.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least, check_sizes
from torchrec_mtl.models.base import MultiTaskModel
from torchrec_mtl.modules import MLP, FeatureArch, TaskTowers, as_features, give_heads, initialize_linear_layers
from torchrec_mtl.tasks import TaskForest


class SharedBottomArch(nn.Module):
    """One bottom MLP on all embeddings, then one tower per task.

    Args:
        in_features: width of the flattened embeddings, ``F * D``.
        num_tasks: number of tasks, ``T``.
        bottom_layer_sizes, tower_layer_sizes, dropout: see `SharedBottom`.

    Raises:
        InputError: see `SharedBottom`.

    Example::

        >>> SharedBottomArch(in_features=6 * 8, num_tasks=3)(torch.randn(2, 6, 8)).shape
        torch.Size([2, 3])
    """

    @checked
    def __init__(
        self,
        in_features: int,
        num_tasks: int,
        *,
        bottom_layer_sizes: Sequence[int] = (256, 128),
        tower_layer_sizes: Sequence[int] = (64,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_at_least(1, in_features=in_features)
        check_sizes(1, bottom_layer_sizes=bottom_layer_sizes)
        self.num_tasks = num_tasks
        self.bottom = MLP(in_features, bottom_layer_sizes)
        self.towers = TaskTowers(num_tasks, bottom_layer_sizes[-1], tower_layer_sizes, dropout)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Maps ``[B, F, D]`` or ``[B, F * D]`` to logits ``[B, T]``."""
        return self.towers([self.bottom(embeddings.flatten(1))] * self.num_tasks)

    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """See `MultiTaskModel`."""
        self.towers.start_from_base_rates(base_rates)


class SharedBottom(MultiTaskModel):
    """`SharedBottomArch` on top of the features.

    The papers give sizes only for the baseline Single-Task, 256-128-64. Here the first two are the bottom and the last
    is the towers.

    Args:
        features: a `FeatureArch`, or a bare embedding bag collection where there are no dense features.
        tasks: the ``T`` tasks.
        bottom_layer_sizes: layer widths of the bottom; a ReLU follows every layer.
        tower_layer_sizes: hidden layer widths of each tower.
        dropout: probability of dropping a hidden unit of a tower during training.

    Raises:
        InputError: if the bottom has no layer, a layer width is below 1, or ``dropout`` is not between 0 and 1.

    Example::

        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> from torchrec_mtl import TaskChain
        >>> table = EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=9, feature_names=["item"])
        >>> model = SharedBottom(EmbeddingBagCollection(tables=[table]), TaskChain(["click", "purchase"]))
        >>> ids = KeyedJaggedTensor.from_lengths_sync(["item"], torch.tensor([3, 5]), torch.tensor([1, 1]))
        >>> model(torch.empty(2, 0), ids).shape
        torch.Size([2, 2])
    """

    @checked
    def __init__(
        self,
        features: FeatureArch | nn.Module,
        tasks: TaskForest,
        *,
        bottom_layer_sizes: Sequence[int] = (256, 128),
        tower_layer_sizes: Sequence[int] = (64,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.features = as_features(features)
        with torch.device(self.features.dense_device):
            self.over_arch = SharedBottomArch(
                self.features.out_features,
                len(tasks),
                bottom_layer_sizes=bottom_layer_sizes,
                tower_layer_sizes=tower_layer_sizes,
                dropout=dropout,
            )
        initialize_linear_layers(self.over_arch)
        give_heads(self.over_arch, tasks)
