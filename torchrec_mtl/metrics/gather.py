"""Every rank's rows, on every rank."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def gather_rows(columns: Sequence[Tensor], process_group: dist.ProcessGroup | None = None) -> list[Tensor]:
    """Each CPU column with the rows of all ranks, in rank order; as it is where no process group is set up.

    Ranks may hold different numbers of rows, or none; types and further dimensions must agree. All ranks call
    it. With NCCL the columns travel through the current CUDA device, one at a time.

    Args:
        columns: ``[N, ...]`` each.
        process_group: the default group by default.

    Example::

        >>> gather_rows([torch.tensor([1, 2])])
        [tensor([1, 2])]
    """
    if not (dist.is_available() and dist.is_initialized()):
        return list(columns)
    device = torch.device("cuda" if dist.get_backend(process_group) == "nccl" else "cpu")
    world_size = dist.get_world_size(process_group)

    def all_gather(values: Tensor) -> list[Tensor]:
        values = values.to(device)
        received = [torch.empty_like(values) for _ in range(world_size)]
        dist.all_gather(received, values, group=process_group)
        return [part.cpu() for part in received]

    num_rows = [int(part) for part in all_gather(torch.tensor([len(columns[0])]))]

    def gather(column: Tensor) -> Tensor:
        padded = column.new_zeros((max(num_rows), *column.shape[1:]))  # ranks must send equal shapes
        padded[: len(column)] = column
        return torch.cat([part[:rows] for part, rows in zip(all_gather(padded), num_rows, strict=True)])

    return [gather(column) for column in columns]
