"""What a train wrapper reads of a batch."""

from typing import Any

from torch import Tensor


def labels_and_weights(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Labels as floats, and weights if the batch has any: TorchRec's own batches do not.

    To be kept from being traced, ``torch.fx.wrap("labels_and_weights")``, by every file that calls it: a traced batch
    would seem to have every attribute.
    """
    return batch.labels.float(), getattr(batch, "weights", None)
