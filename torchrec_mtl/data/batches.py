"""The batch type that models, losses and training take."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass
class MultiTaskBatch(Pipelineable):
    """``torchrec.datasets.utils.Batch`` with a label, and optionally a weight, for each of T tasks.

    TorchRec's train pipelines take it in place of ``Batch``.

    Args:
        dense_features: dense columns, float32 [B, num_dense]; ``num_dense`` may be 0.
        sparse_features: ids, one key per field.
        labels: labels, float32 [B, T], 0 or 1, tasks in funnel order; of tasks that are values, those. In your own
            training loop they may be anything in between, for a loss that takes soft labels.
        weights: label weights, float32 [B, T]; None stands for 1 everywhere. A weight of 0 masks its label.
        num_padded: number of rows at the end that are padding: they make the batches of all ranks equal in size, and
            their labels are masked.
        num_rows_of_all: number of rows of all ranks' batches together, without padding, or that they stand for, where
            some are left out: by it the sum of losses is divided. None if no rank has padding and none are left out.
        groups: groups of the rows, int64 [B], for losses that compare rows of a group; None if the data have none.

    Example::

        >>> ids, lengths = torch.tensor([4, 7]), torch.tensor([1, 1])
        >>> sparse = KeyedJaggedTensor.from_lengths_sync(["store"], ids, lengths)
        >>> batch = MultiTaskBatch(torch.zeros(2, 0), sparse, torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        >>> batch.to(torch.device("cpu")).labels.shape
        torch.Size([2, 2])
    """

    dense_features: Tensor
    sparse_features: KeyedJaggedTensor
    labels: Tensor
    weights: Tensor | None = None
    num_padded: int = 0
    num_rows_of_all: int | None = None
    groups: Tensor | None = None

    def padded(self, num_padded: int) -> "MultiTaskBatch":
        """Returns the batch with its last ``num_padded`` rows as padding: masked, and without ids."""
        weights = torch.ones_like(self.labels) if self.weights is None else self.weights.clone()
        weights[len(weights) - num_padded :] = 0
        sparse = _without_ids(self.sparse_features, len(weights) - num_padded)
        return replace(self, sparse_features=sparse, weights=weights, num_padded=num_padded)

    def to(self, device: torch.device, non_blocking: bool = False) -> "MultiTaskBatch":
        """Returns the batch on ``device``."""
        return replace(
            self,
            dense_features=self.dense_features.to(device, non_blocking=non_blocking),
            sparse_features=self.sparse_features.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
            weights=None if self.weights is None else self.weights.to(device, non_blocking=non_blocking),
            groups=None if self.groups is None else self.groups.to(device, non_blocking=non_blocking),
        )

    def record_stream(self, stream: torch.Stream) -> None:
        """Marks the batch's memory as used by ``stream``, so that the allocator does not reuse it too early."""
        self.dense_features.record_stream(stream)
        self.sparse_features.record_stream(stream)  # type: ignore[arg-type]  # typed for CUDA only
        self.labels.record_stream(stream)
        for optional in (self.weights, self.groups):
            if optional is not None:
                optional.record_stream(stream)

    def pin_memory(self) -> "MultiTaskBatch":
        """Returns the batch in page-locked host memory."""
        return replace(
            self,
            dense_features=self.dense_features.pin_memory(),
            sparse_features=self.sparse_features.pin_memory(),
            labels=self.labels.pin_memory(),
            weights=None if self.weights is None else self.weights.pin_memory(),
            groups=None if self.groups is None else self.groups.pin_memory(),
        )


def _without_ids(sparse: KeyedJaggedTensor, first: int) -> KeyedJaggedTensor:
    """The features without the ids of the rows from ``first`` on, which would be counted as seen once a rank."""
    lengths = sparse.lengths().view(len(sparse.keys()), -1)
    has_ids = torch.arange(lengths.shape[1]).expand_as(lengths) < first
    kept = has_ids.flatten().repeat_interleave(lengths.flatten())
    weights = sparse.weights_or_none()
    return KeyedJaggedTensor(
        sparse.keys(),
        sparse.values()[kept],
        weights=None if weights is None else weights[kept],
        lengths=(lengths * has_ids).flatten(),
        stride=sparse.stride(),
    )
