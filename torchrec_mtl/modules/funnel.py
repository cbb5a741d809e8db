"""Marginal probabilities from the probability of each task given the previous task, ESMM eq. (1)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError
from torchrec_mtl.modules.towers import check_base_rates
from torchrec_mtl.modules.tracing import unbind
from torchrec_mtl.tasks import TaskForest


class MarginalFromConditional(nn.Module):
    """Computes ``p_t = c_t p_{t'}`` on logits, where task ``t`` needs task ``t'``; ``p_t = c_t`` where it needs none.

    ``c_t = P(y_t = 1 | y_{t'} = 1, x)`` is the conditional probability and ``p_t = P(y_t = 1 | x)`` the marginal one.
    The computation is in log space and subtracts no nearly equal probabilities, so that even the rarest events keep
    their precision::

        log p_t       = log p_{t'} + log c_t
        log (1 - p_t) = log ((1 - p_{t'}) + p_{t'} (1 - c_t))

    What comes after the funnel's columns, the outputs of values, stays as it is.

    Args:
        tasks: the ``T`` tasks.

    Example::

        >>> from torchrec_mtl.tasks import TaskChain
        >>> marginal = MarginalFromConditional(TaskChain(["click", "purchase"]))
        >>> marginal(torch.logit(torch.tensor([[0.5, 0.2]]))).sigmoid()
        tensor([[0.5000, 0.1000]])
        >>> marginal(torch.tensor([[-50.0, -50.0]]))
        tensor([[ -50., -100.]])
    """

    @checked
    def __init__(self, tasks: TaskForest) -> None:
        super().__init__()
        self.parents, self.num_values = tasks.funnel.parents, len(tasks.values)

    def forward(self, conditional_logits: Tensor) -> Tensor:
        """Maps conditional logits ``[B, T]`` to marginal logits ``[B, T]``."""
        if self.num_values:
            num_events = len(self.parents)
            marginal = self._multiplied(conditional_logits[:, :num_events])
            return torch.cat([marginal, conditional_logits[:, num_events:]], dim=1)
        return self._multiplied(conditional_logits)

    def _multiplied(self, conditional_logits: Tensor) -> Tensor:
        log_happens, log_does_not = F.logsigmoid(conditional_logits), F.logsigmoid(-conditional_logits)
        happens = unbind(log_happens, len(self.parents))
        does_not = unbind(log_does_not, len(self.parents))
        for task, parent in enumerate(self.parents):
            if parent is not None:
                ends_here = does_not[task] + happens[parent]
                happens[task] = happens[task] + happens[parent]
                does_not[task] = torch.logaddexp(does_not[parent], ends_here)
        return torch.stack(happens, dim=1) - torch.stack(does_not, dim=1)


@checked
def conditional_rates(base_rates: Tensor, parents: Sequence[int | None]) -> Tensor:
    """Returns each task's share of positives among the positives of the task it needs.

    Args:
        base_rates: each task's share of positives among all rows, ``[T]``.
        parents: position of the task that each task needs, as in `TaskForest.parents`.

    Raises:
        InputError: if there is not one rate per task, a rate is not between 0 and 1, or a task is not rarer than the
            task it needs.

    Example::

        >>> conditional_rates(torch.tensor([0.5, 0.1]), (None, 0))
        tensor([0.5000, 0.2000])
    """
    check_base_rates(base_rates, len(parents))
    rates = base_rates.clone()
    for task, parent in enumerate(parents):
        if not 0 < base_rates[task] < 1:
            raise InputError(f"`base_rates` (={base_rates.tolist()}) must be above 0 and below 1")
        if parent is not None:
            rates[task] = base_rates[task] / base_rates[parent]
            if not rates[task] < 1:
                raise InputError(
                    f"`base_rates` (={base_rates.tolist()}) must fall from a task to those after it "
                    "for a model of conditional probabilities"
                )
    return rates
