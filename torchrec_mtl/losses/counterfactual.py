"""ESCM2's objective (Wang et al., SIGIR 2022, section 4), and the risks in it.

Symbols, beside those of `torchrec_mtl.losses.entire_space`: ``delta``, ``errors``, is the cross entropy of the step's
conditional probability, which is known where ``o = 1``; ``delta^``, ``imputed_errors``, is an estimate of it; ``e^ =
delta - delta^``; ``[B, E]`` each. A risk raises `InputError` if one of them has another shape.

The risks estimate ``E[delta]`` over the entire space, as if the previous step had happened in every row. They are
unbiased if, given x, the outcome of a step does not depend on the previous step. Weights work as in
`torchrec_mtl.losses.functional`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError
from torchrec_mtl.losses.entire_space import EntireSpaceLoss
from torchrec_mtl.losses.functional import check_tensor, mean_over_rows
from torchrec_mtl.tasks import TaskForest


def _check_like(errors: Tensor, **others: Tensor | None) -> None:
    """Raises `InputError` unless the errors are ``[B, E]``, and the others have their shape: none is broadcast."""
    check_tensor("errors", errors)
    if errors.dim() != 2:
        raise InputError(f"`errors` (of shape {list(errors.shape)}) must be [B, E]")
    for name, other in others.items():
        if other is None:
            continue
        check_tensor(name, other)
        if other.shape != errors.shape:
            shape = f"`{name}` (of shape {list(other.shape)})"
            raise InputError(f"{shape} must have the shape of `errors`: {list(errors.shape)}")


def ips_risk(errors: Tensor, observed: Tensor, propensities: Tensor, weights: Tensor | None = None) -> Tensor:
    """``E[o delta / o^]``, unbiased if the propensities are true.

    Example::

        >>> ips_risk(torch.tensor([[2.0], [9.0]]), torch.tensor([[1.0], [0.0]]), torch.tensor([[0.5], [0.5]]))
        tensor(2.)
    """
    _check_like(errors, observed=observed, propensities=propensities, weights=weights)
    return mean_over_rows(observed * errors / propensities, weights)


def dr_risk(
    errors: Tensor, imputed_errors: Tensor, observed: Tensor, propensities: Tensor, weights: Tensor | None = None
) -> Tensor:
    """``E[delta^ + o e^ / o^]``, unbiased if the propensities or the imputed errors are true: doubly robust.

    Example::

        >>> errors, imputed = torch.tensor([[2.0], [9.0]]), torch.tensor([[2.0], [3.0]])
        >>> dr_risk(errors, imputed, torch.tensor([[1.0], [0.0]]), torch.tensor([[0.5], [0.5]]))
        tensor(2.5000)
    """
    _check_like(errors, imputed_errors=imputed_errors, observed=observed, propensities=propensities, weights=weights)
    return mean_over_rows(imputed_errors + observed * (errors - imputed_errors) / propensities, weights)


def imputation_loss(
    errors: Tensor, imputed_errors: Tensor, observed: Tensor, propensities: Tensor, weights: Tensor | None = None
) -> Tensor:
    """``E[o e^^2 / o^]``, the loss that fits the imputed errors.

    Example::

        >>> errors, imputed = torch.tensor([[2.0], [9.0]]), torch.tensor([[1.0], [3.0]])
        >>> imputation_loss(errors, imputed, torch.tensor([[1.0], [0.0]]), torch.tensor([[0.5], [0.5]]))
        tensor(1.)
    """
    _check_like(errors, imputed_errors=imputed_errors, observed=observed, propensities=propensities, weights=weights)
    return mean_over_rows(observed * (errors - imputed_errors).square() / propensities, weights)


@torch.fx.wrap
def _counterfactual_risk(
    errors: Tensor, imputed_errors: Tensor | None, seen: Tensor, propensities: Tensor, weights: Tensor, joint: bool
) -> Tensor:
    """Returns `ips_risk`, or `dr_risk` + `imputation_loss` where errors are imputed."""
    steps = (seen, propensities, weights)
    if imputed_errors is None:
        return ips_risk(errors, *steps)
    if joint:
        return dr_risk(errors, imputed_errors, *steps) + imputation_loss(errors, imputed_errors, *steps)
    return dr_risk(errors, imputed_errors.detach(), *steps) + imputation_loss(errors.detach(), imputed_errors, *steps)


class CounterfactualLoss(EntireSpaceLoss):
    """``L_CTR + lambda_c L_CVR + lambda_g L_CTCVR`` of ESCM2, for models that output ``conditional_logits``.

    ``L_CTR`` is the marginal cross entropy of the tasks that need no other, and ``L_CTCVR`` the marginal cross entropy
    of the other tasks. ``L_CVR`` is `ips_risk`; if the model imputes errors, it is `dr_risk` + `imputation_loss`.

    Of these, `dr_risk` trains the towers of the steps and `imputation_loss` the imputation towers, as in doubly robust
    joint learning (Wang et al., ICML 2019). ESCM2 minimises the sum over all towers, see ``joint_imputation``; then
    the steps' towers also lower the spread of ``delta``, which no imputed error can fit, by moving towards 1/2. Either
    way `dr_risk` gives them the gradient of `ips_risk`, as ``delta^`` is no function of their output.

    On a constant x the minimum is the truth, even where propensities are clipped.

    The paper has two tasks; `torchrec_mtl.losses.entire_space` says what further ones add, and that no gradient flows
    through ``o^``, which the paper leaves open.

    Args:
        tasks: the ``T`` tasks, ``E`` of which need another.
        counterfactual_weight: weight of the counterfactual risk, ``lambda_c``; the paper's experiments favour values up
            to 0.1.
        global_weight: weight of the marginal cross entropies of the tasks that need another, ``lambda_g``.
        min_propensity: lower bound of the propensities; its inverse bounds the weights: some bias for less variance.
        joint_imputation: whether both terms of DR train all towers, as in the paper and in PaddleRec's implementation.
            Predictions are then biased: on a constant x where P(buy | click) = .1, it comes out as .24 at a click rate
            of .1 and as .27 at one of .01, and the click rates as .089 and .0087.
        task_weights: weights that multiply all terms of a task, one per task; 1 by default.

    Raises:
        InputError: if there are several tasks and none needs another, ``min_propensity`` is not in (0, 1], there is not
            one weight per task, or a weight is negative.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> logits = torch.logit(torch.tensor([[0.5, 0.25]])).expand(3, 2)
        >>> loss = CounterfactualLoss(TaskChain(["click", "purchase"]))
        >>> loss(logits, torch.ones(3, 2), conditional_logits=torch.zeros(3, 2))  # log 2 + 0.1 log 2 / 0.5 + log 4
        tensor(2.2181)
    """

    @checked
    def __init__(
        self,
        tasks: TaskForest,
        *,
        counterfactual_weight: float = 0.1,
        global_weight: float = 1.0,
        min_propensity: float = 1e-2,
        joint_imputation: bool = False,
        task_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.set_up(tasks, counterfactual_weight, global_weight, min_propensity, task_weights)
        self.joint_imputation = joint_imputation

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        weights: Tensor | None = None,
        *,
        conditional_logits: Tensor,
        imputed_errors: Tensor | None = None,
    ) -> Tensor:
        """Maps marginal logits, labels, weights and conditional logits, ``[B, T]`` each, to a scalar.

        ``imputed_errors`` are ``[B, E]``, or None for IPS.
        """
        risk, steps = self.marginal_risk_and_steps(
            logits, labels, weights, conditional_logits, imputed_errors=imputed_errors
        )
        errors = F.binary_cross_entropy_with_logits(steps.logits, steps.happened, reduction="none")
        propensities = steps.propensities.clamp(min=self.min_propensity)
        counterfactual = _counterfactual_risk(
            errors, imputed_errors, steps.observed, propensities, steps.weights, self.joint_imputation
        )
        return risk + self.counterfactual_weight * counterfactual
