"""DCMT's objective (Zhu et al., "DCMT: A Direct Entire-Space Causal Multi-Task Framework for Post-Click Conversion
Estimation", ICDE 2023); symbols as in `torchrec_mtl.losses.entire_space`."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least
from torchrec_mtl.losses.entire_space import EntireSpaceLoss
from torchrec_mtl.tasks import TaskForest


class DCMTLoss(EntireSpaceLoss):
    """``L_CTR + lambda_c L_DCMT + lambda_g L_CTCVR``, for models that output ``counterfactual_logits``.

    ``L_DCMT`` is the mean over all rows of ``o delta(r, r^) / o^ + (1 - o) delta(1 - r, r*^) / (1 - o^)
    + lambda_1 |1 - (r^ + r*^)|``, with ``delta`` the cross entropy and ``r*^`` the probability of the counterfactual
    tower. Its label is ``1 - r``, so it is 1 where the step before did not happen; the last term is the paper's
    counterfactual prior, that both probabilities sum to 1.

    The first term is unbiased for the entire space if the propensities are true. The second has one label, 1, and is
    least at ``r*^ = 1``, so that the prior pulls ``r^`` to 0. On a constant x the minimum is therefore not quite the
    truth: by default, where P(buy | click) = .1, it comes out as .0999 at click rates of .1 and .01, and as .092 with a
    ``prior_weight`` of .1.

    The paper also divides the inverse propensities by their sum over the batch. Here they are not, so that the loss
    stays a mean over rows on any number of ranks; ``min_propensity`` bounds them.

    Args:
        tasks: the ``T`` tasks, ``E`` of which need another.
        counterfactual_weight: weight of ``L_DCMT``, ``lambda_c``.
        global_weight: weight of the marginal cross entropies of the tasks that need another, ``lambda_g``.
        prior_weight: weight of the counterfactual prior, ``lambda_1``.
        min_propensity: lower bound of ``o^`` and of ``1 - o^``; its inverse bounds the weights.
        task_weights: weights that multiply all terms of a task, one per task; 1 by default.

    Raises:
        InputError: if there are several tasks and none needs another, ``min_propensity`` is not in (0, 1], there is not
            one weight per task, or a weight is negative.

    Example::

        >>> import torch
        >>> from torchrec_mtl import TaskChain
        >>> logits = torch.logit(torch.tensor([[0.5, 0.25]])).expand(3, 2)
        >>> loss = DCMTLoss(TaskChain(["click", "purchase"]))
        >>> steps = {"conditional_logits": torch.zeros(3, 2), "counterfactual_logits": torch.zeros(3, 1)}
        >>> loss(logits, torch.ones(3, 2), **steps)  # log 2 + log 2 / 0.5 + log 4
        tensor(3.4657)
    """

    @checked
    def __init__(
        self,
        tasks: TaskForest,
        *,
        counterfactual_weight: float = 1.0,
        global_weight: float = 1.0,
        prior_weight: float = 1e-3,
        min_propensity: float = 1e-2,
        task_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.set_up(tasks, counterfactual_weight, global_weight, min_propensity, task_weights)
        check_at_least(0, prior_weight=prior_weight)
        self.prior_weight = prior_weight

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        weights: Tensor | None = None,
        *,
        conditional_logits: Tensor,
        counterfactual_logits: Tensor,
    ) -> Tensor:
        """Maps marginal logits, labels, weights and conditional logits, ``[B, T]`` each, and the counterfactual tower's
        logits, ``[B, E]``, to a scalar."""
        risk, steps = self.marginal_risk_and_steps(
            logits, labels, weights, conditional_logits, counterfactual_logits=counterfactual_logits
        )
        errors = F.binary_cross_entropy_with_logits(steps.logits, steps.happened, reduction="none")
        opposite = F.binary_cross_entropy_with_logits(counterfactual_logits, 1 - steps.happened, reduction="none")
        factual = steps.observed * errors * self.inverse(steps.propensities)
        counterfactual = (1 - steps.observed) * opposite * self.inverse(1 - steps.propensities)
        prior = (1 - steps.logits.sigmoid() - counterfactual_logits.sigmoid()).abs()
        terms = factual + counterfactual + self.prior_weight * prior
        return risk + self.counterfactual_weight * self.mean_risk(terms, steps)
