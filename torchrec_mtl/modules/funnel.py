"""From each step's conditional probability to the marginal one, ESMM eq. (1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MarginalFromConditional(nn.Module):
    """``p_t = prod_{s<=t} c_s``, as logits: ``c_t = P(y_t = 1 | y_{t-1} = 1, x)`` and ``p_t = P(y_t = 1 | x)``.

    In log space and without a difference of like numbers, so that events of any rarity keep their precision::

        log p_t       = sum_{s<=t} log c_s
        log (1 - p_t) = log sum_{s<=t} (1 - c_s) p_{s-1}        (the funnel ends at s)

    Example::

        >>> MarginalFromConditional()(torch.logit(torch.tensor([[0.5, 0.2]]))).sigmoid()
        tensor([[0.5000, 0.1000]])
        >>> MarginalFromConditional()(torch.tensor([[-50.0, -50.0]]))
        tensor([[ -50., -100.]])
    """

    def forward(self, conditional_logits: Tensor) -> Tensor:
        """Conditional logits ``[B, T]`` to marginal logits ``[B, T]``."""
        log_conditional = F.logsigmoid(conditional_logits)
        log_marginal = log_conditional.cumsum(dim=1)
        log_ends_here = F.logsigmoid(-conditional_logits) + F.pad(log_marginal[:, :-1], (1, 0))
        return log_marginal - torch.logcumsumexp(log_ends_here, dim=1)
