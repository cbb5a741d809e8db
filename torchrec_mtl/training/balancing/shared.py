"""What is shared by tasks."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from torchrec_mtl.training.balancing.ranks import num_ranks


def shared_by_tasks(logits: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Which of the parameters or representations several tasks' logits depend on, ``[P]``: 1 for those, 0 for others.

    NaN is sent back from the logits of one task after the other, and arrives at what they depend on, even through
    weights of 0. All ranks must call it.
    """
    reached = torch.zeros(logits.shape[1], len(parameters), device=logits.device)
    for task, of_task in enumerate(reached):
        sent = torch.zeros_like(logits)
        sent[:, task] = torch.nan
        back = torch.autograd.grad(logits, parameters, sent, retain_graph=True, allow_unused=True)
        for place, gradient in enumerate(back):
            of_task[place] = 0.0 if gradient is None else gradient.isnan().any()
    if num_ranks() > 1:
        dist.all_reduce(reached, dist.ReduceOp.MAX)
    return (reached.sum(0) > 1).long()
