"""What the losses share that estimate the error of a step over the entire space, as if the step before had happened in
every row: ESCM2's, DCMT's and DDPO's.

Symbols, each ``[B, E]`` with one column for every task that needs another: ``o``, ``observed``, is whether the previous
task happened; ``o^``, ``propensities``, is its estimated probability; ``r``, ``happened``, is whether the task did;
``r^`` is its conditional probability, of ``logits``. The papers have two tasks, click and purchase. Here the propensity
of every further task is the marginal probability of the task it needs, and the terms of all tasks are summed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchrec_mtl.errors import InputError, check_at_least, check_positive_share
from torchrec_mtl.losses import functional
from torchrec_mtl.losses.functional import (
    check_shapes,
    check_tensor,
    columns,
    known_labels,
    mean_over_rows,
    pair_weights,
    parents_and_children,
)
from torchrec_mtl.losses.modules import TaskWeightedLoss
from torchrec_mtl.tasks import TaskForest


class Steps(NamedTuple):
    """The tasks that need another: tensors ``[B, E]``."""

    observed: Tensor
    happened: Tensor
    logits: Tensor
    propensities: Tensor
    weights: Tensor


@torch.fx.wrap
def _known_weights(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    conditional_logits: Tensor,
    of_steps: dict[str, Tensor | None],
    num_edges: int,
) -> Tensor:
    """Checks the shapes, and returns the weights, or 1 for every label."""
    check_shapes(logits, labels=labels, weights=weights, conditional_logits=conditional_logits)
    for name, tensor in of_steps.items():
        if tensor is None:
            continue
        check_tensor(name, tensor)
        if tensor.shape != (len(logits), num_edges):
            given, edges = list(tensor.shape), [len(logits), num_edges]
            raise InputError(f"`{name}` (of shape {given}) must have one column a task that needs another: {edges}")
    return torch.ones_like(labels) if weights is None else weights


@torch.fx.wrap
def _mean_over_rows(terms: Tensor, weights: Tensor) -> Tensor:
    return mean_over_rows(terms, weights)


class EntireSpaceLoss(TaskWeightedLoss):
    """Base of ``L_CTR + lambda_c L_CVR + lambda_g L_CTCVR``.

    ``L_CTR`` is the marginal cross entropy of the tasks that need no other, and ``L_CTCVR`` the marginal cross entropy
    of the other tasks. ``L_CVR`` is what a paper estimates.
    """

    def set_up(
        self,
        tasks: TaskForest,
        counterfactual_weight: float,
        global_weight: float,
        min_propensity: float,
        task_weights: Sequence[float] | None,
    ) -> None:
        """Checks and keeps the arguments; for constructors.

        Raises:
            InputError: if there are several tasks and none needs another, ``min_propensity`` is not in (0, 1], there is
                not one weight per task, or a weight is negative.
        """
        self.set_task_weights(tasks, task_weights)
        tasks.require_edges(type(self).__name__)
        check_positive_share(min_propensity=min_propensity)
        check_at_least(0, counterfactual_weight=counterfactual_weight, global_weight=global_weight)
        self.edges, self.parents = tasks.edges, tasks.parents
        self.counterfactual_weight = counterfactual_weight
        self.global_weight = global_weight
        self.min_propensity = min_propensity

    def marginal_risk_and_steps(
        self,
        logits: Tensor,
        labels: Tensor,
        weights: Tensor | None,
        conditional_logits: Tensor,
        **of_steps: Tensor | None,
    ) -> tuple[Tensor, Steps]:
        """Returns ``L_CTR + lambda_g L_CTCVR``, and what ``L_CVR`` is made of.

        No gradient flows through the propensities; otherwise the model could lower a risk by overstating the
        probability of the observed rows. The papers do not say.

        Args:
            logits, labels, weights, conditional_logits: ``[B, T]`` each.
            of_steps: what else a loss reads, ``[B, E]`` each, for the check of its shape.
        """
        weights = _known_weights(logits, labels, weights, conditional_logits, of_steps, len(self.edges))
        labels = known_labels(labels, weights)
        scales = [1.0 if parent is None else self.global_weight for parent in self.parents]
        scaled = torch.stack([weights[:, place] * scale for place, scale in enumerate(scales)], dim=1)
        risk = functional.cross_entropy(logits, labels, scaled, self.task_weights)

        step_weights = pair_weights(weights, self.edges)
        if self.task_weights is not None:
            step_weights = step_weights * columns(self.task_weights[None], [child for _, child in self.edges])
        observed, happened = parents_and_children(labels, self.edges)
        _, step_logits = parents_and_children(conditional_logits, self.edges)
        propensities, _ = parents_and_children(logits.detach(), self.edges)
        return risk, Steps(observed, happened, step_logits, propensities.sigmoid(), step_weights)

    def mean_risk(self, terms: Tensor, steps: Steps) -> Tensor:
        """Returns the sum over steps of the weighted means over rows of ``terms [B, E]``."""
        return _mean_over_rows(terms, steps.weights)

    def inverse(self, propensities: Tensor) -> Tensor:
        """Returns ``1 / p``, with ``p`` at least ``min_propensity``."""
        return 1 / propensities.clamp(min=self.min_propensity)
