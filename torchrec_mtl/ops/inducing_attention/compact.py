"""The result of `sdpa`, with identical rows computed once; plain PyTorch on any device.

All rows of a sample whose ``z`` is 0 have the same output, in every layer. So it is exact to keep the selected rows and
only some of the others, and to let these few stand for all of them; or none, where z masks. The more points are at 0,
the more it saves.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrec_mtl.errors import InputError
from torchrec_mtl.ops.inducing_attention import sdpa
from torchrec_mtl.ops.inducing_attention.stack import InducingStack, key_bias


class KeptRows(NamedTuple):
    """The rows kept of each sample, the selected ones first; ``R`` is the same for all samples."""

    points: Tensor  # index of each row's point [B, R], int64
    selection: Tensor  # the point's z [B, R]
    log_counts: Tensor  # logarithm of the number of rows that the row stands for [B, R]


def num_rows(selection: Tensor, masked: bool = False) -> int:
    """Returns ``R``: the most points that a sample of ``z [B, K]`` selects, plus one for those at 0 unless z masks.

    Waits for the device.

    Example::

        >>> num_rows(torch.tensor([[0, 0.5, 0, 0], [0, 1, 0.2, 0]])), num_rows(torch.ones(2, 4))
        (3, 4)
    """
    if not selection.numel():
        return selection.shape[1]
    return min(selection.shape[1], max(1, int((selection != 0).sum(1).max()) + (not masked)))


def plan_rows(selection: Tensor, rows: int) -> KeptRows:
    """Chooses the ``R = rows`` rows to keep of ``z [B, K]``; `num_rows` gives the smallest ``R``.

    Example::

        >>> points, kept, log_counts = plan_rows(torch.tensor([[0, 0.5, 0, 0]]), 2)
        >>> points, kept, log_counts.exp()
        (tensor([[1, 0]]), tensor([[0.5000, 0.0000]]), tensor([[1., 3.]]))
    """
    num_points = selection.shape[1]
    active = selection != 0
    num_active = active.sum(1, keepdim=True)
    place = torch.where(active, active.cumsum(1), num_active + (~active).cumsum(1)) - 1
    count = torch.arange(num_points, device=selection.device).expand_as(place)
    points = torch.empty_like(place).scatter_(1, place, count)[:, :rows]
    at_zero = count[:, :rows] >= num_active
    share = (num_points - num_active).double() / (rows - num_active)  # 0 / 0 where all points are selected
    log_counts = torch.where(at_zero, share, 1.0).log().to(torch.promote_types(selection.dtype, torch.float32))
    return KeptRows(points, torch.where(at_zero, 0, selection.gather(1, points)), log_counts)


def inducing_stack(inputs: Tensor, selection: Tensor, stack: InducingStack) -> Tensor:
    """Eq. (17)-(22) with the rows kept; shapes as in the front door.

    Raises:
        InputError: if ``stack.z_grad`` is not "gated".
    """
    if stack.z_grad != "gated":
        raise InputError(
            f"the backend 'compact' does not compute the gradient that `z_grad` (={stack.z_grad!r}) asks for"
        )
    index, kept, log_counts = plan_rows(selection, num_rows(selection, stack.masked))
    of_keys = key_bias(kept) if stack.masked else (log_counts, None)

    def query(points: Tensor) -> Tensor:
        return F.embedding(index, points) * kept.unsqueeze(-1)

    return sdpa.rows_stack(inputs, query, stack, *of_keys)
