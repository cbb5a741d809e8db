"""DDPO's objective (Su et al., "DDPO: Direct Dual Propensity Optimization for Post-Click Conversion Rate Estimation",
SIGIR 2024); symbols as in `torchrec_mtl.losses.entire_space`."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least
from torchrec_mtl.losses.entire_space import EntireSpaceLoss
from torchrec_mtl.tasks import TaskForest


class DDPOLoss(EntireSpaceLoss):
    """``L_o + lambda_c L_c + lambda_r L_r + lambda_t L_t``, DDPO eq. (18), for models with ``conversion_logits``.

    ``L_o`` is the marginal cross entropy of the tasks that need no other, eq. (16), and ``L_t`` that of the others, eq.
    (17). ``L_c`` is the cross entropy of the conversion propensity ``r^c``, of ``conversion_logits``, where the step
    before happened, eq. (6). ``L_r`` is the mean over all rows of ``o delta(r, r^) / o^ + (1 - o) delta(r^c, r^) /
    (1 - o^)``, eq. (8), with ``delta`` the cross entropy: where the step before did not happen, ``r^c`` is the label.
    As in the authors' code, no gradient flows through this label.

    If both propensities are true, each of the two terms of ``L_r`` is unbiased for the entire space, so ``L_r`` is in
    expectation twice the error there (theorem 1 of the paper has propensities of 0 and 1). On a constant x the minimum
    is the truth.

    The paper also divides the inverse propensities by their sum over the batch, eq. (15). Here they are not, so that
    the loss stays a mean over rows on any number of ranks; ``min_propensity`` bounds them.

    Args:
        tasks: the ``T`` tasks, ``E`` of which need another.
        conversion_weight: weight of the conversion propensity's cross entropy, ``lambda_c``.
        counterfactual_weight: weight of ``L_r``, ``lambda_r``.
        global_weight: weight of the marginal cross entropies of the tasks that need another, ``lambda_t``.
        min_propensity: lower bound of ``o^`` and of ``1 - o^``; its inverse bounds the weights.
        soft_labels: whether ``r^c`` is also the label where the step before happened and the task did not, eq. (9) and
            (10), as in the paper. Predictions are then biased: on a constant x where P(buy | click) = .1, it comes out
            as .144 at a click rate of .1 and as .145 at one of .01, and the click rates as .0964 and .0096.
        task_weights: weights that multiply all terms of a task, one per task; 1 by default.

    Raises:
        InputError: if there are several tasks and none needs another, ``min_propensity`` is not in (0, 1], there is not
            one weight per task, or a weight is negative.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> logits = torch.logit(torch.tensor([[0.5, 0.25]])).expand(3, 2)
        >>> loss = DDPOLoss(TaskChain(["click", "purchase"]))
        >>> steps = {"conditional_logits": torch.zeros(3, 2), "conversion_logits": torch.zeros(3, 1)}
        >>> loss(logits, torch.ones(3, 2), **steps)  # log 2 + log 2 + log 2 / 0.5 + log 4
        tensor(4.1589)
    """

    @checked
    def __init__(
        self,
        tasks: TaskForest,
        *,
        conversion_weight: float = 1.0,
        counterfactual_weight: float = 1.0,
        global_weight: float = 1.0,
        min_propensity: float = 1e-2,
        soft_labels: bool = False,
        task_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.set_up(tasks, counterfactual_weight, global_weight, min_propensity, task_weights)
        check_at_least(0, conversion_weight=conversion_weight)
        self.conversion_weight, self.soft_labels = conversion_weight, soft_labels

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        weights: Tensor | None = None,
        *,
        conditional_logits: Tensor,
        conversion_logits: Tensor,
    ) -> Tensor:
        """Maps marginal logits, labels, weights and conditional logits, ``[B, T]`` each, and the conversion
        propensities' logits, ``[B, E]``, to a scalar."""
        risk, steps = self.marginal_risk_and_steps(
            logits, labels, weights, conditional_logits, conversion_logits=conversion_logits
        )
        observed, happened = steps.observed, steps.happened
        conversion = observed * F.binary_cross_entropy_with_logits(conversion_logits, happened, reduction="none")
        pseudo = conversion_logits.detach().sigmoid()
        known = torch.where(happened == 1, 1.0, pseudo) if self.soft_labels else happened
        clicked = F.binary_cross_entropy_with_logits(steps.logits, known, reduction="none")
        unclicked = F.binary_cross_entropy_with_logits(steps.logits, pseudo, reduction="none")
        direct = observed * clicked * self.inverse(steps.propensities)
        direct = direct + (1 - observed) * unclicked * self.inverse(1 - steps.propensities)
        terms = self.conversion_weight * conversion + self.counterfactual_weight * direct
        return risk + self.mean_risk(terms, steps)
