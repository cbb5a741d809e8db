"""A model and its loss in the form TorchRec's train pipelines take."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from torchrec_mtl.errors import InputError
from torchrec_mtl.modules import labels_and_weights

torch.fx.wrap("labels_and_weights")


def reads_beyond_logits(loss: nn.Module) -> dict[str, bool]:
    """The keyword-only arguments of ``loss.forward``, and whether it must have each.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> from torchrec_mtl.losses import CounterfactualLoss
        >>> reads_beyond_logits(CounterfactualLoss(TaskChain(["click", "purchase"])))
        {'conditional_logits': True, 'imputed_errors': False}
    """
    parameters = inspect.signature(loss.forward).parameters.values()
    return {p.name: p.default is p.empty for p in parameters if p.kind is p.KEYWORD_ONLY}


class MultiTaskTrain(nn.Module):
    """What ``DLRMTrain`` is to DLRM: the loss on top of the model, ready for TorchRec's train pipelines.

    A loss that reads more than the logits says so by keyword-only arguments of its ``forward``. A model that gives more
    has ``output_names`` and ``outputs(dense_features, sparse_features)``, a dictionary from each of these names to a
    tensor, ``"logits"`` among them; what the loss reads of it is passed on by name. So any loss goes with any model
    that gives what it reads.

    Args:
        model: ``model(dense_features, sparse_features) -> logits [B, T]``; any module, ours or not.
        loss: ``loss(logits, labels, weights) -> scalar``, such as those of `torchrec_mtl.losses`.

    Raises:
        InputError: if the loss must read what the model does not give.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> from torchrec_mtl.losses import DependenceLoss
        >>> from torchrec_mtl.models import TAFE
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> from torchrec.datasets.utils import Batch
        >>> table = EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=9, feature_names=["item"])
        >>> tasks = TaskChain(["click", "purchase"])
        >>> train_model = MultiTaskTrain(TAFE(EmbeddingBagCollection(tables=[table]), tasks), DependenceLoss(tasks))
        >>> ids = KeyedJaggedTensor.from_lengths_sync(["item"], torch.tensor([3, 5]), torch.tensor([1, 1]))
        >>> loss, (_, logits, labels) = train_model(Batch(torch.empty(2, 0), ids, torch.tensor([[1, 0], [1, 1]])))
        >>> logits.shape, labels.shape
        (torch.Size([2, 2]), torch.Size([2, 2]))
    """

    def __init__(self, model: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self.loss = loss
        given = getattr(model, "output_names", ("logits",))
        read = reads_beyond_logits(loss)
        for name, needed in read.items():
            if needed and name not in given:
                kinds = type(loss).__name__, type(model).__name__
                raise InputError(f"`loss` (={kinds[0]}) reads {name!r}, which {kinds[1]} does not give: {list(given)}")
        self.read = tuple(name for name in read if name in given)

    def forward(self, batch: Any) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Loss with gradient, then loss, logits ``[B, T]`` and labels ``[B, T]`` without.

        Args:
            batch: has ``dense_features [B, num_dense]``, ``sparse_features`` (a KeyedJaggedTensor), ``labels
                [B, T]`` and perhaps ``weights [B, T]``: `torchrec_mtl.data.MultiTaskBatch`, or TorchRec's ``Batch``.
        """
        further = {}
        if self.read:
            outputs = self.model.outputs(batch.dense_features, batch.sparse_features)
            logits = outputs["logits"]
            further = {name: outputs[name] for name in self.read}
        else:
            logits = self.model(batch.dense_features, batch.sparse_features)
        labels, weights = labels_and_weights(batch)
        loss = self.loss(logits, labels, weights, **further)
        return loss, (loss.detach(), logits.detach(), labels)
