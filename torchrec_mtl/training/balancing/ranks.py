"""What balancing needs to know of the rows of all ranks."""

import torch
import torch.distributed as dist
from torch import Tensor


def num_ranks() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def over_ranks(losses: Tensor, gram: Tensor | None, num_terms: int, num_rows: int) -> tuple[Tensor, Tensor]:
    """The mean losses over all ranks' rows, ``[T]``, and their gradients' products, ``[T, T]``; float64 on the CPU.

    Args:
        losses: this rank's losses, ``[T]``.
        gram: scalar products of this rank's gradients with respect to its rows' representations, or None. Each row is
            of one rank, so those of all ranks' rows are the sum.
        num_terms: number of rows by which this rank's losses are divided, padding included.
        num_rows: number of rows without padding.
    """
    parts = [losses.new_tensor([num_rows], dtype=torch.float64), losses.double() * num_terms]
    if gram is not None:
        parts.append(gram.double().flatten() * num_terms**2)
    sums = torch.cat(parts)
    if num_ranks() > 1:
        dist.all_reduce(sums)
    sums, num_tasks = sums.cpu(), len(losses)
    all_rows = sums[0].clamp(min=1)
    return sums[1 : num_tasks + 1] / all_rows, (sums[num_tasks + 1 :] / all_rows**2).view(-1, num_tasks)


def mean_over_ranks(vectors: Tensor, num_terms: int, num_rows: int) -> Tensor:
    """The gradients ``[T, N]`` of the mean losses over all ranks' rows, from those of this rank's mean."""
    if num_ranks() == 1:
        return vectors * (num_terms / max(num_rows, 1))
    counted = torch.cat([vectors.flatten() * num_terms, vectors.new_tensor([num_rows])])
    dist.all_reduce(counted)
    return (counted[:-1] / counted[-1].clamp(min=1)).view_as(vectors)
