"""Batch normalisation over the rows of all ranks, none of which is padding."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least

MOMENTUM, EPSILON = 0.1, 1e-3


class _SumOverRanks(torch.autograd.Function):
    """The sum over ranks; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumOverRanks.forward(ctx, gradient)


def _over_ranks(own: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        total: Tensor = _SumOverRanks.apply(own)
        return total
    return own


@torch.fx.wrap  # a traced batch has no number of rows
def _moments(x: Tensor, num_padded: int, running_mean: Tensor, running_variance: Tensor) -> tuple[Tensor, Tensor]:
    rows = x[: x.shape[0] - num_padded]
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    sums = _over_ranks(torch.cat([rows.sum(0), rows.new_full((1,), rows.shape[0])]))
    count = sums[-1]
    mean = sums[:-1] / count.clamp(min=1)
    variance = _over_ranks((rows - mean).square().sum(0)) / count.clamp(min=1)
    mean = torch.where(count > 1, mean, running_mean)
    variance = torch.where(count > 1, variance, running_variance)
    for running, found in ((running_mean, mean), (running_variance, variance)):
        found = torch.where(found.isfinite(), found, running)  # a step that is skipped leaves no NaN
        running.lerp_(found.detach().to(running), MOMENTUM)
    return mean, variance


class BatchNorm(nn.Module):
    """``weight * (x - mean) / sqrt(variance + 1e-3) + bias``, each of ``[D]``; Ioffe and Szegedy, ICML 2015.

    In training, mean and variance are those of the batch: of the rows of all ranks, so that ranks divide a batch
    without changing it, and keep the same running statistics. Rows that are padding are in no statistics:
    `torchrec_mtl.MultiTaskTrain` reads their number from the batch. With micro-batches, each is a batch. One row has no
    variance, so a batch of one row takes the running statistics and leaves them.

    In evaluation they are the running statistics, to which every training batch adds a tenth, so a row's output depends
    on no other row. The variance is the biased one throughout.

    Args:
        features: number of columns, ``D``.

    Raises:
        InputError: if ``features`` is below 1.

    Example::

        >>> norm = BatchNorm(2)
        >>> norm(torch.tensor([[1.0, 5.0], [3.0, 5.0]])).detach().round(decimals=2)
        tensor([[-1.,  0.],
                [ 1.,  0.]])
        >>> norm.running_mean
        tensor([0.2000, 0.5000])
    """

    running_mean: Tensor
    running_variance: Tensor

    @checked
    def __init__(self, features: int) -> None:
        super().__init__()
        check_at_least(1, features=features)
        self.weight = nn.Parameter(torch.empty(features))
        self.bias = nn.Parameter(torch.empty(features))
        self.register_buffer("running_mean", torch.empty(features))
        self.register_buffer("running_variance", torch.empty(features))
        self.num_padded = 0
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Makes it the identity but for ``EPSILON``, with statistics of mean 0 and variance 1."""
        for ones in (self.weight, self.running_variance):
            nn.init.ones_(ones)
        for zeros in (self.bias, self.running_mean):
            nn.init.zeros_(zeros)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, D]`` to ``[B, D]``."""
        mean, variance = self.running_mean, self.running_variance
        if self.training:
            mean, variance = _moments(x, self.num_padded, mean, variance)
        scale = self.weight * (variance + EPSILON).rsqrt()
        return ((x - mean) * scale + self.bias).to(x.dtype)


def set_num_padded(model: nn.Module, num_padded: int) -> None:
    """Sets the number of rows at the end of a batch that are padding, for every `BatchNorm` in ``model``."""
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.num_padded = num_padded
