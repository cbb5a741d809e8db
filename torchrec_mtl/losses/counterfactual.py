"""ESCM2's objective (Wang et al., SIGIR 2022, section 4), and the risks that it is made of.

Symbols, each ``[B, S]`` with a column for every step of the funnel but the first: ``o`` whether the step before
happened, ``observed``; ``o^`` its estimated probability, ``propensities``; ``delta`` the cross entropy of the step's
conditional probability, ``errors``, which is known where ``o = 1``; ``delta^`` its estimate, ``imputed_errors``;
``e^ = delta - delta^``.

The risks estimate ``E[delta]`` over the entire space, as if the step before had happened in every row. They are
unbiased where a step's outcome does not depend on the one before given x. Weights are as in
`torchrec_mtl.losses.functional`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchrec_mtl.errors import InputError
from torchrec_mtl.losses.functional import known_labels, mean_over_rows
from torchrec_mtl.losses.modules import CrossEntropyLoss


def ips_risk(errors: Tensor, observed: Tensor, propensities: Tensor, weights: Tensor | None = None) -> Tensor:
    """``E[o delta / o^]``, unbiased with true propensities.

    Example::

        >>> ips_risk(torch.tensor([[2.0], [9.0]]), torch.tensor([[1.0], [0.0]]), torch.tensor([[0.5], [0.5]]))
        tensor(2.)
    """
    return mean_over_rows(observed * errors / propensities, weights)


def dr_risk(
    errors: Tensor, imputed_errors: Tensor, observed: Tensor, propensities: Tensor, weights: Tensor | None = None
) -> Tensor:
    """``E[delta^ + o e^ / o^]``, unbiased where propensities or imputed errors are true: doubly robust.

    Example::

        >>> errors, imputed = torch.tensor([[2.0], [9.0]]), torch.tensor([[2.0], [3.0]])
        >>> dr_risk(errors, imputed, torch.tensor([[1.0], [0.0]]), torch.tensor([[0.5], [0.5]]))
        tensor(2.5000)
    """
    return mean_over_rows(imputed_errors + observed * (errors - imputed_errors) / propensities, weights)


def imputation_loss(
    errors: Tensor, imputed_errors: Tensor, observed: Tensor, propensities: Tensor, weights: Tensor | None = None
) -> Tensor:
    """``E[o e^^2 / o^]``, which fits the imputed errors.

    Example::

        >>> errors, imputed = torch.tensor([[2.0], [9.0]]), torch.tensor([[1.0], [3.0]])
        >>> imputation_loss(errors, imputed, torch.tensor([[1.0], [0.0]]), torch.tensor([[0.5], [0.5]]))
        tensor(1.)
    """
    return mean_over_rows(observed * (errors - imputed_errors).square() / propensities, weights)


class CounterfactualLoss(nn.Module):
    """``L_CTR + lambda_c L_CVR + lambda_g L_CTCVR`` of ESCM2, for `torchrec_mtl.models.ESCM2Train`.

    ``L_CTR`` and ``L_CTCVR`` are the marginal cross entropies of the first task and of the others. ``L_CVR`` is
    `ips_risk`, or where the model imputes errors `dr_risk` + `imputation_loss`, minimised jointly as in the paper.

    The paper has two tasks; here each further step's propensity is the marginal probability of the step before, and
    its terms are summed. The paper does not say whether ``o^`` is held fixed in ``L_CVR``: here no gradient flows
    through it, else a risk would fall by overstating how likely the observed rows were.

    Args:
        counterfactual_weight: ``lambda_c``; the paper's experiments favour values up to 0.1.
        global_weight: ``lambda_g``.
        min_propensity: bounds the weights by its inverse; a bias for less variance.
        task_weights: one a task, multiplies all of a task's terms; 1 by default.

    Raises:
        InputError: if ``min_propensity`` is not in (0, 1] or a weight is negative.

    Example::

        >>> conditional_logits, labels = torch.zeros(3, 2), torch.ones(3, 2)
        >>> logits = torch.logit(torch.tensor([[0.5, 0.25]])).expand(3, 2)
        >>> CounterfactualLoss()(logits, conditional_logits, labels)  # log 2 + 0.1 log 2 / 0.5 + log 4
        tensor(2.2181)
    """

    def __init__(
        self,
        counterfactual_weight: float = 0.1,
        global_weight: float = 1.0,
        min_propensity: float = 1e-2,
        task_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if not 0 < min_propensity <= 1:
            raise InputError(f"`min_propensity` (={min_propensity}) must be above 0 and at most 1")
        for name, weight in {"counterfactual_weight": counterfactual_weight, "global_weight": global_weight}.items():
            if weight < 0:
                raise InputError(f"`{name}` (={weight}) must not be negative")
        self.counterfactual_weight = counterfactual_weight
        self.global_weight = global_weight
        self.min_propensity = min_propensity
        self.cross_entropy = CrossEntropyLoss(task_weights)

    def forward(
        self,
        logits: Tensor,
        conditional_logits: Tensor,
        labels: Tensor,
        weights: Tensor | None = None,
        imputed_errors: Tensor | None = None,
    ) -> Tensor:
        """Marginal logits, conditional logits, labels and weights, ``[B, T]`` each, to a scalar.

        ``imputed_errors``, ``[B, T - 1]``, or none for IPS.
        """
        weights = torch.ones_like(labels) if weights is None else weights
        labels = known_labels(labels, weights)
        scale = F.pad(weights.new_full((labels.shape[1] - 1,), self.global_weight), (1, 0), value=1.0)
        risk = self.cross_entropy(logits, labels, weights * scale)

        step_weights = weights[:, 1:] * (weights[:, :-1] != 0)
        if self.cross_entropy.task_weights is not None:
            step_weights = step_weights * self.cross_entropy.task_weights[1:]
        errors = F.binary_cross_entropy_with_logits(conditional_logits[:, 1:], labels[:, 1:], reduction="none")
        propensities = logits[:, :-1].detach().sigmoid().clamp(min=self.min_propensity)
        seen = (labels[:, :-1], propensities, step_weights)
        if imputed_errors is None:
            return risk + self.counterfactual_weight * ips_risk(errors, *seen)
        doubly_robust = dr_risk(errors, imputed_errors, *seen) + imputation_loss(errors, imputed_errors, *seen)
        return risk + self.counterfactual_weight * doubly_robust
