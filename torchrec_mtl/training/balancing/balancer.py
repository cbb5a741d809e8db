"""From the loss of a batch to one backward pass whose gradients are balanced.

A loss is a sum over tasks, and a label's weight multiplies its term. So with the weights of task ``t`` times ``c_t``
the loss is ``sum_t c_t L_t``, and the tasks' losses ``L_t`` are its derivatives with respect to ``c``: every loss can
be balanced as it is, terms that compare two tasks included. These count for the later task, as its weight does.

The gradients of each task are taken down to the shared representation, the output of `FeatureArch`. What is below, the
tables and the dense features' MLP, is gone through once, in the backward pass that follows, with the balanced gradient
of the representation: tables keep the optimizer that is fused with it, and replicas average as they do without.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn

from torchrec_mtl.errors import InputError
from torchrec_mtl.modules import FeatureArch
from torchrec_mtl.training.balancing.method import GRADIENTS, BalancingMethod
from torchrec_mtl.training.balancing.ranks import mean_over_ranks, over_ranks
from torchrec_mtl.training.balancing.shared import shared_by_tasks

_UNKNOWN = 2  # whether a parameter is shared, 0 or 1, until the first batch


class _WithGradients(torch.autograd.Function):
    """A scalar that is given its gradients with respect to tensors."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], *tensors: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        return None, None, *(gradient * upstream for gradient in ctx.gradients)


class Balancer(nn.Module):
    """Gives a loss the gradients that a method of balancing asks for; see this file's first lines.

    Args:
        method: the method.
        model: the model, which has `FeatureArch` modules if the method reads gradients.
        loss: the loss. Its parameters, if it has any, count as the model's.

    Raises:
        InputError: if the method reads gradients, and the model has no `FeatureArch`.
    """

    shared: Tensor

    def __init__(self, method: BalancingMethod, model: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.method = method
        self._parts = (model, loss)  # a tuple: they are parts of `MultiTaskTrain`
        self._reads_gradients = method.reads in GRADIENTS
        self._representations: list[Tensor] = []
        self._above: list[nn.Parameter] | None = None  # known once the model is on its device
        self._checked = False
        if self._reads_gradients:
            if not self._features():
                kind = type(model).__name__
                raise InputError(f"`model` (={kind}) must have a `FeatureArch` for a `balancing` that reads gradients")
            num_inputs = len(self._features()) + len(self._parameters_above())
            with torch.device("cpu"):  # see `TaskWeightedLoss`
                self.register_buffer("shared", torch.full((num_inputs,), _UNKNOWN))

    def _features(self) -> list[FeatureArch]:
        return [module for module in self._parts[0].modules() if isinstance(module, FeatureArch)]

    def _parameters_above(self) -> list[nn.Parameter]:
        """The parameters of model and loss that are in no `FeatureArch`."""
        below = {id(parameter) for features in self._features() for parameter in features.parameters()}
        found = {id(p): p for part in self._parts for p in part.parameters() if p.requires_grad and id(p) not in below}
        return list(found.values())

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keeps the representations that the model computes in this context."""
        self._representations = []

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.requires_grad:  # a traced one is no tensor
                self._representations.append(output)

        with ExitStack() as stack:
            for features in self._features() if self._reads_gradients else ():
                stack.callback(features.register_forward_hook(keep).remove)
            yield

    def forward(
        self, loss: Callable[[Tensor], Tensor], logits: Tensor, weights: Tensor | None, num_rows: int
    ) -> Tensor:
        """The value of the loss, with the balanced gradients.

        Args:
            loss: maps the weights of the labels to the loss.
            logits: the logits, ``[B, T]``.
            weights: weights of the labels, ``[B, T]``, or None where all are 1.
            num_rows: number of rows that are no padding.

        Raises:
            InputError: if the loss is no sum of terms that each a weight of its label multiplies.
        """
        dtype = torch.promote_types(logits.dtype, torch.float32)
        scale = torch.ones(logits.shape[1], dtype=dtype, device=logits.device, requires_grad=True)
        value = loss((torch.ones_like(logits, dtype=dtype) if weights is None else weights) * scale)
        (losses,) = torch.autograd.grad(value, scale, create_graph=True)
        value, known, method = value.detach(), losses.detach(), self.method
        self._check(value, known)
        if self._reads_gradients:
            with torch.autocast(logits.device.type, enabled=False):
                return self._with_gradients(value, losses, logits, num_rows)
        if method.reads == "losses":
            known, _ = over_ranks(known, None, len(logits), num_rows)
            if not known.isfinite().all():
                return losses.sum()  # not finite on some rank
        balanced = (method(known, known[:0]).to(losses) * losses).sum()
        penalty = method.penalty()
        if penalty is not None:  # counts once, however the rows are divided among ranks
            balanced = balanced + penalty * (num_rows / max(len(logits), 1))
        return value + (balanced - balanced.detach())

    def _check(self, value: Tensor, losses: Tensor) -> None:
        """Compares the sum of the tasks' losses with the loss, once."""
        if self._checked or not value.isfinite():
            return
        self._checked = True
        if not torch.isclose(losses.sum(), value, rtol=1e-3, atol=1e-6):
            kind, total = type(self._parts[1]).__name__, losses.sum().item()
            rule = "must be a sum of terms that each a label's weight multiplies, to be balanced"
            raise InputError(f"`loss` (={kind}) {rule}: it is {value.item():g}, and its terms are {total:g}")

    def _with_gradients(self, value: Tensor, losses: Tensor, logits: Tensor, num_rows: int) -> Tensor:
        above = self._above = self._above or self._parameters_above()
        read, self._representations = self._representations, []
        if len(read) != len(self._features()):
            rule = "must be trained and read once in a batch for a `balancing` that reads gradients"
            raise InputError(f"every `FeatureArch` of `model` {rule}")
        inputs = [*read, *above]
        if (self.shared == _UNKNOWN).any():
            self.shared.copy_(shared_by_tasks(logits, inputs))
        is_shared = self.shared.bool().tolist()
        of_tasks = [
            torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)
            for loss in losses
        ]
        means, gram = self._compared(losses.detach(), of_tasks, len(read), is_shared, len(logits), num_rows)
        if not means.isfinite().all():
            return losses.sum()  # not finite on some rank
        if not gram.isfinite().all():
            return losses.sum() * torch.nan  # gradients overflow, of all ranks
        weights = self.method(means, gram).to(losses)
        plain = weights if self.method.weighs_specific else torch.ones_like(weights)
        gradients = [
            torch.tensordot(weights if shared else plain, torch.stack(of_tensor).to(weights), 1).to(tensor)
            for tensor, shared, *of_tensor in zip(inputs, is_shared, *of_tasks, strict=True)
        ]
        result: Tensor = _WithGradients.apply(value, gradients, *inputs)
        return result

    def _compared(
        self,
        losses: Tensor,
        of_tasks: Sequence[Sequence[Tensor]],
        num_read: int,
        is_shared: Sequence[bool],
        num_terms: int,
        num_rows: int,
    ) -> tuple[Tensor, Tensor]:
        """The mean losses ``[T]`` over all ranks' rows, and the Gram matrix ``[T, T]``."""
        rows = _vectors((compress(of_task[:num_read], is_shared) for of_task in of_tasks), losses)
        means, gram = over_ranks(losses, rows @ rows.T, num_terms, num_rows)
        if self.method.reads == "shared":
            vectors = _vectors((compress(of_task[num_read:], is_shared[num_read:]) for of_task in of_tasks), losses)
            vectors = mean_over_ranks(vectors, num_terms, num_rows)
            gram = gram + (vectors @ vectors.T).to(gram)
        return means, gram


def _vectors(of_tasks: Iterable[Iterable[Tensor]], like: Tensor) -> Tensor:
    """The gradients of each task as one vector, ``[T, N]``; ``N`` may be 0."""
    return torch.stack([torch.cat([like.new_zeros(0), *(part.flatten() for part in parts)]) for parts in of_tasks])
