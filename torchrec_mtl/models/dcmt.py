"""DCMT: direct entire-space causal multi-task framework (Zhu et al., ICDE 2023, arXiv 2302.06141)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.models.base import MultiTaskModel
from torchrec_mtl.modules import (
    FeatureArch,
    MarginalFromConditional,
    TaskTowers,
    as_features,
    conditional_rates,
    give_heads,
    initialize_linear_layers,
)
from torchrec_mtl.tasks import TaskForest


class DCMTArch(nn.Module):
    """ESMM's towers, those of the tasks that need another as twins: each also ends in a counterfactual logit.

    Written from two public implementations and notes, not from the paper's text, so that the defaults of the loss are
    not known to be the paper's. ``r^`` and ``r*^`` are the outputs of a twin tower, of the same hidden layers. The
    sources leave open at which layer twins part; here it is the last. The paper adds a linear ("wide") part to each
    output; here, as in the other models, there is none.

    Args:
        in_features: width of the flattened embeddings, ``F * D``.
        tasks: the ``T`` tasks; a chain of 2 in the paper.
        tower_layer_sizes, dropout: see `DCMT`.

    Attributes:
        output_names: names of the tensors that `outputs` returns: the marginal ``logits [B, T]``, ``conditional_logits
            [B, T]`` and ``counterfactual_logits [B, E]``, one for each of the ``E`` tasks that need another.

    Raises:
        InputError: see `DCMT`.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> arch = DCMTArch(6 * 8, TaskChain(["click", "cart", "purchase"]))
        >>> {name: tuple(output.shape) for name, output in arch.outputs(torch.randn(2, 6, 8)).items()}
        {'logits': (2, 3), 'conditional_logits': (2, 3), 'counterfactual_logits': (2, 2)}
    """

    output_names = ("logits", "conditional_logits", "counterfactual_logits")

    @checked
    def __init__(
        self,
        in_features: int,
        tasks: TaskForest,
        *,
        tower_layer_sizes: Sequence[int] = (256, 128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        tasks.require_edges("DCMT")
        self.tasks = tasks
        self.towers = TaskTowers(len(tasks), in_features, tower_layer_sizes, dropout)
        self.marginal = MarginalFromConditional(tasks)
        width = [in_features, *tower_layer_sizes][-1]
        self.counterfactual = nn.ModuleList(nn.Linear(width, 1) for _ in tasks.funnel.edges)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Maps ``[B, F, D]`` or ``[B, F * D]`` to marginal logits ``[B, T]``."""
        return self.marginal(self.towers([embeddings.flatten(1)] * len(self.tasks)))

    def outputs(self, embeddings: Tensor) -> dict[str, Tensor]:
        """Maps ``[B, F, D]`` or ``[B, F * D]`` to the tensors named in `output_names`."""
        towers: Any = self.towers.towers
        hidden = [tower.hidden(embeddings.flatten(1)) for tower in towers]
        conditional_logits = torch.cat([tower.output(x) for tower, x in zip(towers, hidden, strict=True)], dim=1)
        twins = zip(self.counterfactual, self.tasks.funnel.edges, strict=True)
        opposite = [output(hidden[child]) for output, (_, child) in twins]
        return {
            "logits": self.marginal(conditional_logits),
            "conditional_logits": conditional_logits[:, : len(self.tasks.funnel)],
            "counterfactual_logits": torch.cat([conditional_logits[:, :0], *opposite], dim=1),
        }

    @torch.no_grad()
    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """See `MultiTaskModel`; the towers predict conditional probabilities, and their twins those of the opposite."""
        self.towers.start_from_base_rates(conditional_rates(base_rates, self.tasks.funnel.parents))
        towers: Any = self.towers.towers
        twins: Any = self.counterfactual
        for output, (_, child) in zip(twins, self.tasks.funnel.edges, strict=True):
            output.bias.copy_(-towers[child].output.bias)


class DCMT(MultiTaskModel):
    """`DCMTArch` on top of the features. Train it with `torchrec_mtl.losses.DCMTLoss`.

    Args:
        features: a `FeatureArch`, or a bare embedding bag collection where there are no dense features.
        tasks: the ``T`` tasks, some of which need another.
        tower_layer_sizes: hidden layer widths of each tower.
        dropout: probability of dropping a hidden unit of a tower during training.

    Raises:
        InputError: if there are several tasks and none needs another, a layer width is below 1, or ``dropout`` is not
            between 0 and 1.
    """

    @checked
    def __init__(
        self,
        features: FeatureArch | nn.Module,
        tasks: TaskForest,
        *,
        tower_layer_sizes: Sequence[int] = (256, 128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.features = as_features(features)
        with torch.device(self.features.dense_device):
            self.over_arch = DCMTArch(
                self.features.out_features,
                tasks,
                tower_layer_sizes=tower_layer_sizes,
                dropout=dropout,
            )
        initialize_linear_layers(self.over_arch)
        give_heads(self.over_arch, tasks)
