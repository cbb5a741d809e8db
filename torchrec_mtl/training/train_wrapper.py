"""A model and its loss in the form that TorchRec's train pipelines expect."""

import inspect
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError
from torchrec_mtl.modules.batch_norm import BatchNorm, set_num_padded
from torchrec_mtl.training.balancing.balancer import Balancer
from torchrec_mtl.training.balancing.method import BalancingMethod

OF_BATCH = ("groups",)  # what a loss may read that is the batch's, not the model's


@torch.fx.wrap  # a traced batch would appear to have every attribute, and a loss may depend on shapes
def _call(
    loss: nn.Module,
    batch: Any,
    logits: Tensor,
    further: dict[str, Tensor],
    of_batch: tuple[str, ...],
    balancer: Balancer | None,
) -> Tensor:
    """Calls the loss with labels as floats, and with the weights if there are any, in the shape of the logits.

    TorchRec's own batches have no weights, and where there is one task, labels ``[B]``.
    """
    labels, weights = batch.labels, getattr(batch, "weights", None)
    tasks = getattr(loss, "tasks", None)  # a value may have several outputs
    shape = torch.Size([len(logits), logits.shape[1] if tasks is None else len(tasks)])
    has_one_task = shape[1:] == (1,)
    shapes = [shape, shape[:1]] if has_one_task else [shape]
    for name, given in (("labels", labels), ("weights", weights)):
        if given is not None and given.shape not in shapes:
            expected = "[B, 1] or [B]" if has_one_task else "[B, T]"
            found = f"(of shape {list(given.shape)}) must be {expected}"
            raise InputError(f"`{name}` {found}, for logits of shape {list(logits.shape)}")
    weights = None if weights is None else weights.view(shape)
    labels = labels.float().view(shape)
    for name in of_batch:
        if (read := getattr(batch, name, None)) is None:
            raise InputError(f"`{name}` of the batch must be given: `loss` (={type(loss).__name__}) reads it")
        further = {**further, name: read}
    if balancer is None:
        value: Tensor = loss(logits, labels, weights, **further)
        return value
    num_rows = len(logits) - getattr(batch, "num_padded", 0)
    of_tasks = logits if tasks is None else torch.stack([logits[:, columns].sum(1) for columns in tasks.outputs], 1)
    return balancer(lambda weights: loss(logits, labels, weights, **further), of_tasks, weights, num_rows)


def _read_padding(train_model: nn.Module, arguments: tuple[Any, ...]) -> None:
    set_num_padded(train_model, getattr(arguments[0], "num_padded", 0))


def _forget_padding(train_model: nn.Module, arguments: tuple[Any, ...], outputs: object) -> None:
    set_num_padded(train_model, 0)


@torch.fx.wrap
def _as_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits in the shape of labels ``[B]`` of one task."""
    return logits.view_as(labels) if logits.numel() == labels.numel() else logits


def reads_beyond_logits(loss: nn.Module) -> dict[str, bool]:
    """The keyword-only arguments of ``loss.forward``, and whether each is required.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> from torchrec_mtl.losses import CounterfactualLoss
        >>> reads_beyond_logits(CounterfactualLoss(TaskChain(["click", "purchase"])))
        {'conditional_logits': True, 'imputed_errors': False}
    """
    of_funnel = getattr(loss, "funnel", None)
    parameters = inspect.signature((of_funnel or loss).forward).parameters.values()
    return {p.name: p.default is p.empty for p in parameters if p.kind is p.KEYWORD_ONLY}


class MultiTaskTrain(nn.Module):
    """A model with its loss, ready for TorchRec's train pipelines, as ``DLRMTrain`` is for DLRM.

    A loss that reads more than the logits says so by keyword-only arguments of ``forward``. A model that offers more
    has ``output_names`` and ``outputs(dense_features, sparse_features)``, which returns a dictionary from each of these
    names, including ``"logits"``, to a tensor. The loss gets the outputs that it reads by name, so any loss works with
    any model that offers what it reads. ``groups`` comes from the batch.

    Args:
        model: ``model(dense_features, sparse_features) -> logits [B, T]``; any module, from this library or not.
        loss: ``loss(logits, labels, weights) -> scalar``, such as the losses of `torchrec_mtl.losses`.
        balancing: how the tasks' losses are balanced in training, one of `torchrec_mtl.training.balancing`; by default
            the loss is taken as it is.

    Raises:
        InputError: if the loss requires an output that the model does not offer, or the model does not have what
            ``balancing`` reads.

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

    @checked
    def __init__(self, model: nn.Module, loss: nn.Module, balancing: BalancingMethod | None = None) -> None:
        super().__init__()
        self.model: Any = model
        self.loss = loss
        given = getattr(model, "output_names", ("logits",))
        read = reads_beyond_logits(loss)
        for name, needed in read.items():
            if needed and name not in (*given, *OF_BATCH):
                kinds = type(loss).__name__, type(model).__name__
                raise InputError(f"`loss` (={kinds[0]}) reads {name!r}, which {kinds[1]} does not give: {list(given)}")
        self.read = tuple(name for name in read if name in given)
        self.of_batch = tuple(name for name in read if name in OF_BATCH)
        self.balancer = None if balancing is None else Balancer(balancing, model, loss)
        if any(isinstance(module, BatchNorm) for module in model.modules()):
            self.register_forward_pre_hook(_read_padding)
            self.register_forward_hook(_forget_padding, always_call=True)

    def forward(self, batch: Any) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Returns the loss with its gradient, then loss, logits and labels without gradients.

        In training the gradient is balanced, if the losses are to be; the value is the loss's either way. The labels
        are the batch's own, and the logits have their shape, ``[B, T]``; where tasks are values, ``[B, L]``.

        Args:
            batch: batch with ``dense_features [B, num_dense]``, ``sparse_features`` (a KeyedJaggedTensor), ``labels
                [B, T]`` of any type and perhaps ``weights [B, T]`` and ``groups [B]``:
                `torchrec_mtl.data.MultiTaskBatch` or TorchRec's ``Batch``. Where there is one task, labels and weights
                may also be ``[B]``.

        Raises:
            InputError: if the labels or weights have another shape, or the loss reads groups and there are none.
        """
        further = {}
        balancer = self.balancer if self.training and torch.is_grad_enabled() else None
        with nullcontext() if balancer is None else balancer.reading():
            if self.read:
                outputs = self.model.outputs(batch.dense_features, batch.sparse_features)
                logits = outputs["logits"]
                further = {name: outputs[name] for name in self.read}
            else:
                logits = self.model(batch.dense_features, batch.sparse_features)
        loss = _call(self.loss, batch, logits, further, self.of_batch, balancer)
        found = logits.detach()
        return loss, (loss.detach(), _as_labels(found, batch.labels), batch.labels)
