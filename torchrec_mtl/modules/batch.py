"""The labels and weights that a train wrapper reads from a batch."""

from typing import Any

from torch import Tensor


def labels_and_weights(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Returns the labels as floats, and the weights if the batch has any; TorchRec's own batches have none.

    Every file that calls this must exclude it from tracing with ``torch.fx.wrap("labels_and_weights")``, because a
    traced batch appears to have every attribute.
    """
    return batch.labels.float(), getattr(batch, "weights", None)
