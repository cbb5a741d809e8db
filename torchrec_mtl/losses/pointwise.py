"""Cross entropies that weigh or soften the labels: focal loss and label smoothing.

Neither has its minimum at the truth. ``true_logits`` of each maps logits at the minimum to those of the probabilities
that they stand for. It rises with the logit, so no AUC depends on it.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError, check_at_least
from torchrec_mtl.losses import functional
from torchrec_mtl.losses.functional import check_shapes, check_tensor, known_labels, mean_over_rows, weigh_tasks
from torchrec_mtl.losses.modules import TaskWeightedLoss
from torchrec_mtl.tasks import TaskForest


@torch.fx.wrap
def _focal(
    logits: Tensor, labels: Tensor, weights: Tensor | None, task_weights: Tensor | None, gamma: float, alpha: float
) -> Tensor:
    check_shapes(logits, labels=labels, weights=weights)
    labels = known_labels(labels, weights)
    does_not, happens = F.softplus(logits), F.softplus(-logits)  # -log (1 - p), -log p
    positives = alpha * happens * (-gamma * does_not).exp()
    negatives = (1 - alpha) * does_not * (-gamma * happens).exp()
    terms = labels * positives + (1 - labels) * negatives
    return mean_over_rows(weigh_tasks(terms, task_weights), weights)


class FocalLoss(TaskWeightedLoss):
    """Focal loss (Lin et al., ICCV 2017), ``-a_t (1 - p_t)^gamma log p_t``, which weighs down what is predicted well.

    ``p_t`` is ``p`` where the task happened and ``1 - p`` where it did not; ``a_t`` is ``alpha`` and ``1 - alpha``. A
    label between 0 and 1 counts as that share of a row with label 1.

    On a constant x the minimum is not the truth: rare events come out too likely. With the default arguments a
    probability of .1 comes out as .306 and one of .01 as .154; `true_logits` gives them back.

    Args:
        tasks: the ``T`` tasks.
        gamma: exponent; 0 for the cross entropy.
        alpha: weight of the positives, between 0 and 1; 0.25 in the paper's best model. At 0.5 both classes weigh the
            same, and the loss is half as large as without weights.
        task_weights: weights of the tasks' terms, one per task; 1 by default.

    Raises:
        InputError: if ``gamma`` is negative, ``alpha`` is not between 0 and 1, there is not one weight per task, or a
            weight is negative.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> loss = FocalLoss(TaskChain(["click", "purchase"]))
        >>> loss(torch.zeros(3, 2), torch.ones(3, 2))  # 2 * 0.5 * 0.5^2 log 2
        tensor(0.1733)
    """

    @checked
    def __init__(
        self, tasks: TaskForest, *, gamma: float = 2.0, alpha: float = 0.5, task_weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.set_task_weights(tasks, task_weights)
        check_at_least(0, gamma=gamma)
        if not 0 < alpha < 1:
            raise InputError(f"`alpha` (={alpha}) must be above 0 and below 1")
        self.gamma, self.alpha = gamma, alpha

    def forward(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Maps logits, labels and weights, ``[B, T]`` each, to a scalar."""
        return _focal(logits, labels, weights, self.task_weights, self.gamma, self.alpha)

    def true_logits(self, logits: Tensor) -> Tensor:
        """Maps logits of any shape to the logits of the probabilities at which they are the minimum.

        ``(1 + gamma) s + log (1 - alpha) / alpha + log (1 + gamma r(s)) / (1 + gamma r(-s))``, where ``r(s)`` is
        ``exp(-s) log (1 + exp(s))``: where the derivative of the expected loss is 0, as in Charoenphakdee et al., "On
        Focal Loss for Class-Posterior Probability Estimation", CVPR 2021.

        Example::

            >>> from torchrec_mtl import TaskChain
            >>> FocalLoss(TaskChain(["click"])).true_logits(torch.tensor([0.3058]).logit()).sigmoid()
            tensor([0.1000])
        """
        check_tensor("logits", logits)

        def r(s: Tensor) -> Tensor:
            s = s.clamp(-15.0, 80.0)  # 1 below and 0 above, where its factors underflow
            return (-s).exp() * F.softplus(s)

        odds = math.log1p(-self.alpha) - math.log(self.alpha)
        bend = (self.gamma * r(logits)).log1p() - (self.gamma * r(-logits)).log1p()
        return (1 + self.gamma) * logits + odds + bend


@torch.fx.wrap
def _smoothed(labels: Tensor, smoothing: float) -> Tensor:
    check_tensor("labels", labels)
    return (1 - smoothing) * labels + smoothing / 2


class LabelSmoothingLoss(TaskWeightedLoss):
    """Cross entropy of smoothed labels, ``(1 - smoothing) y + smoothing / 2`` (Szegedy et al., CVPR 2016).

    On a constant x the minimum is not the truth but ``q = (1 - smoothing) p + smoothing / 2``: by default a probability
    of .01 comes out as .059. `true_logits` gives it back. For rare tasks choose a smoothing well below their rate.

    Args:
        tasks: the ``T`` tasks.
        smoothing: share of a label that is spread evenly over 0 and 1; the paper's value.
        task_weights: weights of the tasks' cross entropies, one per task; 1 by default.

    Raises:
        InputError: if ``smoothing`` is not from 0 to below 1, there is not one weight per task, or a weight is
            negative.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> loss = LabelSmoothingLoss(TaskChain(["click"]), smoothing=0.5)
        >>> loss(torch.tensor([[3.0]]).log(), torch.ones(1, 1))  # -0.75 log 0.75 - 0.25 log 0.25
        tensor(0.5623)
    """

    @checked
    def __init__(
        self, tasks: TaskForest, *, smoothing: float = 0.1, task_weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.set_task_weights(tasks, task_weights)
        if not 0 <= smoothing < 1:
            raise InputError(f"`smoothing` (={smoothing}) must be at least 0 and below 1")
        self.smoothing = smoothing

    def forward(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Maps logits, labels and weights, ``[B, T]`` each, to a scalar."""
        return functional.cross_entropy(logits, _smoothed(labels, self.smoothing), weights, self.task_weights)

    def true_logits(self, logits: Tensor) -> Tensor:
        """Maps logits of any shape to the logits of ``p = (q - smoothing / 2) / (1 - smoothing)``.

        They are infinite where ``q`` is beyond what smoothed labels allow.

        Example::

            >>> from torchrec_mtl import TaskChain
            >>> LabelSmoothingLoss(TaskChain(["click"])).true_logits(torch.tensor([0.059]).logit()).sigmoid()
            tensor([0.0100])
        """
        check_tensor("logits", logits)
        p = (logits.sigmoid() - self.smoothing / 2) / (1 - self.smoothing)
        return p.clamp(0.0, 1.0).logit()
