"""ESCM2: entire space counterfactual multi-task model (Wang et al., SIGIR 2022, arXiv 2204.05125)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_choice
from torchrec_mtl.models.base import MultiTaskModel
from torchrec_mtl.modules import (
    FeatureArch,
    MarginalFromConditional,
    TaskTowers,
    as_features,
    conditional_rates,
    give_heads,
    hidden_layers,
    initialize_linear_layers,
)
from torchrec_mtl.tasks import TaskForest


class ESCM2Arch(nn.Module):
    """ESMM's towers and, for the doubly robust estimator, an imputation tower for each task that needs another.

    The paper's ``o^`` and ``r^`` are the conditional probabilities of the two towers. Its imputed error ``delta^`` is
    the output of the imputation tower. The paper leaves open how ``delta^`` is bounded; here a softplus makes it
    positive, like the cross entropy that it estimates.

    Args:
        in_features: width of the flattened embeddings, ``F * D``.
        tasks: the ``T`` tasks; a chain of 2 in the paper.
        estimator, tower_layer_sizes, dropout: see `ESCM2`.

    Attributes:
        output_names: names of the tensors that `outputs` returns: the marginal ``logits [B, T]``,
            ``conditional_logits [B, T]`` and, for the doubly robust estimator, ``imputed_errors``, which is
            ``delta^ [B, E]``, one for each of the ``E`` tasks that need another.

    Raises:
        InputError: see `ESCM2`.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> arch = ESCM2Arch(6 * 8, TaskChain(["click", "cart", "purchase"]), estimator="dr")
        >>> {name: tuple(output.shape) for name, output in arch.outputs(torch.randn(2, 6, 8)).items()}
        {'logits': (2, 3), 'conditional_logits': (2, 3), 'imputed_errors': (2, 2)}
    """

    @checked
    def __init__(
        self,
        in_features: int,
        tasks: TaskForest,
        *,
        estimator: Literal["ips", "dr"] = "ips",
        tower_layer_sizes: Sequence[int] = (256, 128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        tasks.require_edges("ESCM2")
        check_choice("estimator", estimator, ("ips", "dr"))
        self.tasks = tasks
        self.towers = TaskTowers(len(tasks), in_features, tower_layer_sizes, dropout)
        self.marginal = MarginalFromConditional(tasks)
        width = [in_features, *tower_layer_sizes][-1]
        self.imputation_towers = nn.ModuleList(
            nn.Sequential(hidden_layers(in_features, tower_layer_sizes, dropout), nn.Linear(width, 1), nn.Softplus())
            for _ in range(len(tasks.funnel.edges) if estimator == "dr" else 0)
        )
        self.output_names = ("logits", "conditional_logits", *(["imputed_errors"] if self.imputation_towers else []))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Maps ``[B, F, D]`` or ``[B, F * D]`` to marginal logits ``[B, T]``."""
        return self.marginal(self.towers([embeddings.flatten(1)] * len(self.tasks)))

    def outputs(self, embeddings: Tensor) -> dict[str, Tensor]:
        """Maps ``[B, F, D]`` or ``[B, F * D]`` to the tensors named in `output_names`."""
        embeddings = embeddings.flatten(1)
        conditional_logits = self.towers([embeddings] * len(self.tasks))
        outputs = {"logits": self.marginal(conditional_logits), "conditional_logits": conditional_logits}
        if self.tasks.values:
            outputs["conditional_logits"] = conditional_logits[:, : len(self.tasks.funnel)]
        if self.imputation_towers:
            imputed = [tower(embeddings) for tower in self.imputation_towers]
            outputs["imputed_errors"] = torch.cat(imputed, dim=1)
        return outputs

    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """See `MultiTaskModel`; the towers predict conditional probabilities."""
        self.towers.start_from_base_rates(conditional_rates(base_rates, self.tasks.funnel.parents))


class ESCM2(MultiTaskModel):
    """`ESCM2Arch` on top of the features. Train it with `torchrec_mtl.losses.CounterfactualLoss`.

    Args:
        features: a `FeatureArch`, or a bare embedding bag collection where there are no dense features.
        tasks: the ``T`` tasks, some of which need another.
        estimator: estimator of the counterfactual risk: ``"ips"``, inverse propensity scores, or ``"dr"``, doubly
            robust.
        tower_layer_sizes: hidden layer widths of each tower, including the imputation towers.
        dropout: probability of dropping a hidden unit of a tower during training.

    Raises:
        InputError: if there are several tasks and none needs another, ``estimator`` is neither ``"ips"`` nor ``"dr"``,
            a layer width is below 1, or ``dropout`` is not between 0 and 1.
    """

    @checked
    def __init__(
        self,
        features: FeatureArch | nn.Module,
        tasks: TaskForest,
        *,
        estimator: Literal["ips", "dr"] = "ips",
        tower_layer_sizes: Sequence[int] = (256, 128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.features = as_features(features)
        with torch.device(self.features.dense_device):
            self.over_arch = ESCM2Arch(
                self.features.out_features,
                tasks,
                estimator=estimator,
                tower_layer_sizes=tower_layer_sizes,
                dropout=dropout,
            )
        initialize_linear_layers(self.over_arch)
        give_heads(self.over_arch, tasks)
