"""ESCM2: entire space counterfactual multi-task model (Wang et al., SIGIR 2022, arXiv 2204.05125)."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchrec_mtl.errors import InputError
from torchrec_mtl.models.base import FlatModel
from torchrec_mtl.modules import MarginalFromConditional, TaskTowers, hidden_layers, labels_and_weights

torch.fx.wrap("labels_and_weights")


class ESCM2Arch(nn.Module):
    """ESMM's towers and, for the doubly robust estimator, an imputation tower for each step but the first.

    The paper's ``o^`` and ``r^`` are the two towers' conditional probabilities, its imputed error ``delta^`` the
    imputation tower's output. It leaves open how ``delta^`` is bounded: a softplus makes it positive, as the cross
    entropy that it stands for.

    Args:
        in_features: width of the flattened embeddings, ``F * D``.
        num_tasks: ``T``; 2 in the paper.
        estimator: ``"ips"``, inverse propensity scores, or ``"dr"``, doubly robust.
        tower_layer_sizes: hidden layers of each tower, imputation towers too.
        dropout: probability of dropping a tower's hidden unit in training.

    Raises:
        InputError: if ``estimator`` is neither.

    Example::

        >>> arch = ESCM2Arch(in_features=6 * 8, num_tasks=3, estimator="dr")
        >>> arch(torch.randn(2, 6, 8)).shape, arch.imputed_errors(torch.randn(2, 6, 8)).shape
        (torch.Size([2, 3]), torch.Size([2, 2]))
    """

    def __init__(
        self,
        in_features: int,
        num_tasks: int,
        estimator: Literal["ips", "dr"] = "ips",
        tower_layer_sizes: Sequence[int] = (256, 128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if estimator not in ("ips", "dr"):
            raise InputError(f"`estimator` (={estimator!r}) must be 'ips' or 'dr'")
        self.num_tasks = num_tasks
        self.towers = TaskTowers(num_tasks, in_features, tower_layer_sizes, dropout)
        self.marginal = MarginalFromConditional()
        width = [in_features, *tower_layer_sizes][-1]
        self.imputation_towers = nn.ModuleList(
            nn.Sequential(hidden_layers(in_features, tower_layer_sizes, dropout), nn.Linear(width, 1), nn.Softplus())
            for _ in range(num_tasks - 1 if estimator == "dr" else 0)
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        """``[B, F, D]`` or ``[B, F * D]`` to marginal logits ``[B, T]``."""
        return self.marginal(self.conditional_logits(embeddings))

    def conditional_logits(self, embeddings: Tensor) -> Tensor:
        """``[B, F, D]`` or ``[B, F * D]`` to conditional logits ``[B, T]``."""
        return self.towers([embeddings.flatten(1)] * self.num_tasks)

    def imputed_errors(self, embeddings: Tensor) -> Tensor | None:
        """``[B, F, D]`` or ``[B, F * D]`` to ``delta^ [B, T - 1]``; none for IPS."""
        if not self.imputation_towers:
            return None
        return torch.cat([tower(embeddings.flatten(1)) for tower in self.imputation_towers], dim=1)


class ESCM2(FlatModel):
    """`ESCM2Arch` on the embeddings; train it with `ESCM2Train` and `torchrec_mtl.losses.CounterfactualLoss`.

    Args: those of `FlatModel`, then `ESCM2Arch`'s.

    Raises:
        InputError: if ``estimator`` is neither ``"ips"`` nor ``"dr"``.
    """

    over_arch: ESCM2Arch
    over_arch_class = ESCM2Arch


class ESCM2Train(nn.Module):
    """`torchrec_mtl.MultiTaskTrain` for a loss that also reads conditional logits and imputed errors.

    Args:
        model: an `ESCM2`.
        loss: ``loss(logits, conditional_logits, labels, weights, imputed_errors) -> scalar``:
            `torchrec_mtl.losses.CounterfactualLoss`.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> from torchrec_mtl.losses import CounterfactualLoss
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> from torchrec.datasets.utils import Batch
        >>> table = EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=9, feature_names=["item"])
        >>> model = ESCM2(EmbeddingBagCollection(tables=[table]), TaskChain(["click", "purchase"]), estimator="dr")
        >>> train_model = ESCM2Train(model, CounterfactualLoss())
        >>> ids = KeyedJaggedTensor.from_lengths_sync(["item"], torch.tensor([3, 5]), torch.tensor([1, 1]))
        >>> loss, (_, logits, labels) = train_model(Batch(torch.empty(2, 0), ids, torch.tensor([[1, 0], [1, 1]])))
        >>> logits.shape, labels.shape
        (torch.Size([2, 2]), torch.Size([2, 2]))
    """

    def __init__(self, model: ESCM2, loss: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Any) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Loss with gradient, then loss, marginal logits ``[B, T]`` and labels ``[B, T]`` without.

        Args:
            batch: see `torchrec_mtl.MultiTaskTrain`.
        """
        arch = self.model.over_arch
        embeddings = self.model.embed(batch.dense_features, batch.sparse_features)
        conditional_logits = arch.conditional_logits(embeddings)
        logits = arch.marginal(conditional_logits)
        labels, weights = labels_and_weights(batch)
        loss = self.loss(logits, conditional_logits, labels, weights, arch.imputed_errors(embeddings))
        return loss, (loss.detach(), logits.detach(), labels)
