"""Sluice networks (Ruder et al., AAAI 2019, *Latent Multi-task Architecture Learning*, arXiv 1705.08142)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least
from torchrec_mtl.models.base import MultiTaskModel
from torchrec_mtl.modules import (
    CrossStitchLayer,
    FeatureArch,
    LayerStitchUnit,
    TaskTowers,
    as_features,
    give_heads,
    initialize_linear_layers,
)
from torchrec_mtl.tasks import TaskForest


class SluiceArch(nn.Module):
    """One network per task on the same input, whose subspaces are mixed after every layer, then its layers.

    The paper's three equations, for two tasks and two subspaces each::

        [h~_A1; h~_A2; h~_B1; h~_B2] = alpha [h_A1; h_A2; h_B1; h_B2]     after every layer, alpha [T S, T S]
        h~_A = sum_l beta_Al h_Al                                        what the tower of A reads
        L_c = sum over tasks and layers of |G_1^T G_2|_F^2               keeps a layer's subspaces orthogonal

    With one subspace and ``beta`` at the last layer alone, this is a cross-stitch network with one ``alpha`` per layer.

    Choices made here: the paper's networks are bidirectional LSTMs on words, these are ReLU layers on the embeddings,
    and ``G`` is the weight of such a layer. All layers have one width, so that ``beta`` can mix them. ``alpha`` starts
    as in `CrossStitchUnit` with a subspace in the place of a task, and ``beta`` at ``1 / L``; the authors' code has
    several starts. ``L_c`` is an output that no loss of this library reads, as its weight is 0 by default in that code:
    a loss of your own adds it if its ``forward`` has the keyword ``subspace_penalty``.

    Args:
        in_features: width of the flattened embeddings, ``F * D``.
        num_tasks: number of tasks, ``T``.
        num_layers, layer_size, num_subspaces, tower_layer_sizes, dropout: see `Sluice`.

    Attributes:
        output_names: names of the tensors that `outputs` returns: the ``logits [B, T]`` and ``subspace_penalty``,
            which is ``L_c``, a scalar.

    Raises:
        InputError: see `Sluice`.

    Example::

        >>> SluiceArch(in_features=6 * 8, num_tasks=3)(torch.randn(2, 6, 8)).shape
        torch.Size([2, 3])
    """

    output_names = ("logits", "subspace_penalty")

    @checked
    def __init__(
        self,
        in_features: int,
        num_tasks: int,
        *,
        num_layers: int = 2,
        layer_size: int = 128,
        num_subspaces: int = 2,
        tower_layer_sizes: Sequence[int] = (64,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_at_least(1, num_tasks=num_tasks, in_features=in_features, num_layers=num_layers, layer_size=layer_size)
        self.num_tasks = num_tasks
        self.layers: Any = nn.ModuleList(
            CrossStitchLayer(num_tasks, layer_size if layer else in_features, layer_size, "layer", num_subspaces)
            for layer in range(num_layers)
        )
        self.layer_stitch = LayerStitchUnit(num_tasks, num_layers)
        self.towers = TaskTowers(num_tasks, layer_size, tower_layer_sizes, dropout)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Maps ``[B, F, D]`` or ``[B, F * D]`` to logits ``[B, T]``."""
        states, of_layers = [embeddings.flatten(1)] * self.num_tasks, []
        for layer in self.layers:
            states = layer(states)
            of_layers.append(states)
        return self.towers(self.layer_stitch(of_layers))

    def outputs(self, embeddings: Tensor) -> dict[str, Tensor]:
        """Maps ``[B, F, D]`` or ``[B, F * D]`` to the tensors named in `output_names`."""
        penalties = [layer.subspace_penalty() for layer in self.layers]
        return {"logits": self(embeddings), "subspace_penalty": torch.stack(penalties).sum()}

    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """See `MultiTaskModel`."""
        self.towers.start_from_base_rates(base_rates)


class Sluice(MultiTaskModel):
    """`SluiceArch` on top of the features.

    Args:
        features: a `FeatureArch`, or a bare embedding bag collection where there are no dense features.
        tasks: the ``T`` tasks.
        num_layers: number of layers of each network, ``L``; a ReLU and a mixing of subspaces follow every layer.
        layer_size: width of every layer.
        num_subspaces: number of subspaces of every layer, ``S``; the paper has 2. It must divide ``layer_size``.
        tower_layer_sizes: hidden layer widths of each tower; these layers are not mixed.
        dropout: probability of dropping a hidden unit of a tower during training.

    Raises:
        InputError: if a number is below 1, ``num_subspaces`` does not divide ``layer_size``, or ``dropout`` is not
            between 0 and 1.
    """

    @checked
    def __init__(
        self,
        features: FeatureArch | nn.Module,
        tasks: TaskForest,
        *,
        num_layers: int = 2,
        layer_size: int = 128,
        num_subspaces: int = 2,
        tower_layer_sizes: Sequence[int] = (64,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.features = as_features(features)
        with torch.device(self.features.dense_device):
            self.over_arch = SluiceArch(
                self.features.out_features,
                len(tasks),
                num_layers=num_layers,
                layer_size=layer_size,
                num_subspaces=num_subspaces,
                tower_layer_sizes=tower_layer_sizes,
                dropout=dropout,
            )
        initialize_linear_layers(self.over_arch)
        give_heads(self.over_arch, tasks)
