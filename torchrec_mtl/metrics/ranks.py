"""What ranks send each other so that a metric is of the rows of all."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """The ranks of a process group, or one alone if torch.distributed is not initialised.

    All ranks must call the same methods in the same order, with CPU tensors of the same types; a rank may have no rows.
    With NCCL, tensors travel through the current CUDA device, one at a time.

    Args:
        process_group: the group; the default group by default.
    """

    def __init__(self, process_group: dist.ProcessGroup | None = None) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        self._group = process_group
        self.size = dist.get_world_size(process_group) if distributed else 1
        nccl = distributed and dist.get_backend(process_group) == "nccl"
        self._device = torch.device("cuda" if nccl else "cpu")

    def sum(self, values: Tensor) -> Tensor:
        """Returns the sum over ranks of tensors of one shape."""
        if self.size == 1:
            return values
        total = values.to(self._device, copy=True)
        dist.all_reduce(total, group=self._group)
        return total.cpu()

    def stack(self, values: Tensor) -> Tensor:
        """Returns the tensors of all ranks, which have one shape, as ``[size, ...]``."""
        if self.size == 1:
            return values[None]
        sent = values.to(self._device)
        received = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(received, sent, group=self._group)
        return torch.stack(received).cpu()

    def gather(self, columns: Sequence[Tensor]) -> list[Tensor]:
        """Returns each column ``[N, ...]`` with the rows of all ranks, in rank order."""
        num_rows = self.stack(torch.tensor(len(columns[0]))).tolist()

        def gathered(column: Tensor) -> Tensor:
            padded = column.new_zeros((max(num_rows), *column.shape[1:]))  # all ranks must send the same shape
            padded[: len(column)] = column
            return torch.cat([part[:rows] for part, rows in zip(self.stack(padded), num_rows, strict=True)])

        return [gathered(column) for column in columns]

    def exchange(self, columns: Sequence[Tensor], owners: Tensor) -> list[Tensor]:
        """Sends each row to one rank; returns the columns of the rows that this rank received, in rank order.

        Args:
            columns: ``[N, ...]`` each.
            owners: the rank that each row goes to, ``[N]``.
        """
        order = owners.argsort(stable=True)
        sent = torch.bincount(owners, minlength=self.size).to(self._device)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self._group)
        sizes = received.tolist(), sent.tolist()

        def exchanged(column: Tensor) -> Tensor:
            to_send = column[order].to(self._device)
            got = to_send.new_empty((sum(sizes[0]), *column.shape[1:]))
            dist.all_to_all_single(got, to_send, *sizes, group=self._group)
            return got.cpu()

        return [exchanged(column) for column in columns]
