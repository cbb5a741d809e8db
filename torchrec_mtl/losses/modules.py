"""The papers' objectives as modules: ``loss(logits, labels, weights) -> scalar``, for `MultiTaskTrain`."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec_mtl.errors import InputError
from torchrec_mtl.losses import functional


class CrossEntropyLoss(nn.Module):
    """Weighted sum of the tasks' cross entropies, BPCM eq. (11), TAFE eq. (23).

    Args:
        task_weights: ``w_t``, one a task; 1 by default.

    Raises:
        InputError: if a weight is negative.

    Example::

        >>> CrossEntropyLoss(task_weights=[1.0, 0.5])(torch.zeros(3, 2), torch.ones(3, 2))  # 1.5 log 2
        tensor(1.0397)
    """

    task_weights: Tensor | None

    def __init__(self, task_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if task_weights is not None and min(task_weights) < 0:
            raise InputError(f"`task_weights` (={list(task_weights)}) must not be negative")
        weights = None if task_weights is None else torch.tensor(task_weights)
        self.register_buffer("task_weights", weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """``[B, T]`` each to a scalar."""
        return functional.cross_entropy(logits, labels, weights, self.task_weights)


class CalibratedLoss(nn.Module):
    """Cross entropy and ``alpha`` times the calibrator, BPCM eq. (13); also AITM's objective.

    Args:
        alpha: weight of the calibrator; BPCM found 0.6 best.
        task_weights: see `CrossEntropyLoss`.

    Example::

        >>> CalibratedLoss()(torch.zeros(3, 2), torch.ones(3, 2))  # 2 log 2, nothing to calibrate
        tensor(1.3863)
    """

    def __init__(self, alpha: float = 0.6, task_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.alpha = alpha
        self.cross_entropy = CrossEntropyLoss(task_weights)

    def forward(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """``[B, T]`` each to a scalar."""
        penalty = functional.calibrator(logits, weights)
        return self.cross_entropy(logits, labels, weights) + self.alpha * penalty


class DependenceLoss(nn.Module):
    """Cross entropy and the dependence loss, TAFE eq. (25) with (29).

    Args:
        dependence_weight: weight of the dependence loss; 1 in the paper, 0 for its ablation "w/o L_D-Task".
        task_weights: see `CrossEntropyLoss`.

    Example::

        >>> DependenceLoss()(torch.zeros(3, 2), torch.ones(3, 2))  # 2 log 2, both differences are 0
        tensor(1.3863)
    """

    def __init__(self, dependence_weight: float = 1.0, task_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.dependence_weight = dependence_weight
        self.cross_entropy = CrossEntropyLoss(task_weights)

    def forward(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """``[B, T]`` each to a scalar."""
        dependence = functional.dependence(logits, labels, weights)
        return self.cross_entropy(logits, labels, weights) + self.dependence_weight * dependence


class LocalSpaceLoss(nn.Module):
    """Each task's cross entropy where the step before happened, importance-weighted, TAFE theorem 2.1.

    The propensities come from the model's own marginal probabilities, without gradient.

    Args:
        min_propensity: bounds the weights by its inverse, see `torchrec_mtl.losses.step_propensity`.

    Raises:
        InputError: if ``min_propensity`` is not in (0, 1].

    Example::

        >>> LocalSpaceLoss()(torch.zeros(3, 2), torch.ones(3, 2))  # all rows are in the local space
        tensor(1.3863)
    """

    def __init__(self, min_propensity: float = 1e-3) -> None:
        super().__init__()
        if not 0 < min_propensity <= 1:
            raise InputError(f"`min_propensity` (={min_propensity}) must be above 0 and at most 1")
        self.min_propensity = min_propensity

    def forward(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """``[B, T]`` each to a scalar."""
        propensities = functional.step_propensity(logits, labels, self.min_propensity)
        return functional.local_space_bce(logits, labels, propensities, weights)
