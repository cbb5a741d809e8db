"""A model and its loss in the form TorchRec's train pipelines take."""

from typing import Any

import torch
from torch import Tensor, nn

from torchrec_mtl.modules import labels_and_weights

torch.fx.wrap("labels_and_weights")


class MultiTaskTrain(nn.Module):
    """What ``DLRMTrain`` is to DLRM: the loss on top of the model, ready for TorchRec's train pipelines.

    Args:
        model: ``model(dense_features, sparse_features) -> logits [B, T]``; any module, ours or not.
        loss: ``loss(logits, labels, weights) -> scalar``, such as those of `torchrec_mtl.losses`.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> from torchrec_mtl.losses import DependenceLoss
        >>> from torchrec_mtl.models import TAFE
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> from torchrec.datasets.utils import Batch
        >>> table = EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=9, feature_names=["item"])
        >>> model = TAFE(EmbeddingBagCollection(tables=[table]), TaskChain(["click", "purchase"]))
        >>> train_model = MultiTaskTrain(model, DependenceLoss())
        >>> ids = KeyedJaggedTensor.from_lengths_sync(["item"], torch.tensor([3, 5]), torch.tensor([1, 1]))
        >>> loss, (_, logits, labels) = train_model(Batch(torch.empty(2, 0), ids, torch.tensor([[1, 0], [1, 1]])))
        >>> logits.shape, labels.shape
        (torch.Size([2, 2]), torch.Size([2, 2]))
    """

    def __init__(self, model: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Any) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Loss with gradient, then loss, logits ``[B, T]`` and labels ``[B, T]`` without.

        Args:
            batch: has ``dense_features [B, num_dense]``, ``sparse_features`` (a KeyedJaggedTensor), ``labels
                [B, T]`` and perhaps ``weights [B, T]``: `torchrec_mtl.data.MultiTaskBatch`, or TorchRec's ``Batch``.
        """
        logits = self.model(batch.dense_features, batch.sparse_features)
        labels, weights = labels_and_weights(batch)
        loss = self.loss(logits, labels, weights)
        return loss, (loss.detach(), logits.detach(), labels)
