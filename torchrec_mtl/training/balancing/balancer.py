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
import torch.distributed as dist
from torch import Tensor, nn

from torchrec_mtl.errors import InputError
from torchrec_mtl.modules import FeatureArch
from torchrec_mtl.training.balancing.method import GRADIENTS, BalancingMethod

_UNKNOWN, _SPECIFIC, _SHARED = 2, 0, 1


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
            if not any(isinstance(module, FeatureArch) for module in model.modules()):
                kind = type(model).__name__
                raise InputError(f"`model` (={kind}) must have a `FeatureArch` for a `balancing` that reads gradients")
            with torch.device("cpu"):  # see `TaskWeightedLoss`
                self.register_buffer("shared", torch.full((len(self._parameters_above()),), _UNKNOWN))

    def _parameters_above(self) -> list[nn.Parameter]:
        """The parameters of model and loss that are in no `FeatureArch`."""
        below = {
            id(parameter)
            for module in self._parts[0].modules()
            if isinstance(module, FeatureArch)
            for parameter in module.parameters()
        }
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
            for module in self._parts[0].modules() if self._reads_gradients else ():
                if isinstance(module, FeatureArch):
                    stack.callback(module.register_forward_hook(keep).remove)
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
        scale = torch.ones(
            logits.shape[1], dtype=torch.promote_types(logits.dtype, torch.float32), device=logits.device
        )
        scale.requires_grad_()
        scaled = torch.ones_like(logits, dtype=scale.dtype) if weights is None else weights
        value = loss(scaled * scale)
        (losses,) = torch.autograd.grad(value, scale, create_graph=True)
        self._check(value.detach(), losses.detach())
        method = self.method
        if method.reads == "nothing":
            penalty = method.penalty()
            balanced = (method(losses.detach(), losses.detach()[:0]).to(losses) * losses).sum()
            if penalty is not None:  # counts once, however the rows are divided among ranks
                balanced = balanced + penalty * (num_rows / max(len(logits), 1))
            return value.detach() + (balanced - balanced.detach())
        num_terms = len(logits)  # by which this rank's losses are divided
        if method.reads == "losses":
            means, _ = _over_ranks(losses.detach(), None, num_terms, num_rows)
            if not means.isfinite().all():
                return value
            balanced = (method(means, means[:0]).to(losses) * losses).sum()
            return value.detach() + (balanced - balanced.detach())
        return self._with_gradients(value, losses, logits, num_terms, num_rows)

    def _check(self, value: Tensor, losses: Tensor) -> None:
        """Compares the sum of the tasks' losses with the loss, once."""
        if self._checked or not value.isfinite():
            return
        self._checked = True
        if not torch.isclose(losses.sum(), value, rtol=1e-3, atol=1e-6):
            kind, total = type(self._parts[1]).__name__, losses.sum().item()
            rule = "must be a sum of terms that each a label's weight multiplies, to be balanced"
            raise InputError(f"`loss` (={kind}) {rule}: it is {value.item():g}, and its terms are {total:g}")

    def _with_gradients(self, value: Tensor, losses: Tensor, logits: Tensor, num_terms: int, num_rows: int) -> Tensor:
        above = self._above = self._above or self._parameters_above()
        read, self._representations = self._representations, []
        if not read:
            raise InputError("the `FeatureArch` of `model` must be trained for a `balancing` that reads gradients")
        if (self.shared == _UNKNOWN).any():
            self.shared.copy_(shared_by_tasks(logits, above))
        is_shared = [kind == _SHARED for kind in self.shared.tolist()]
        inputs, num_read = [*read, *above], len(read)
        of_tasks = [
            torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)
            for loss in losses
        ]
        rows = _vectors(of_task[:num_read] for of_task in of_tasks)
        gram = (rows @ rows.T).double()
        means, gram = _over_ranks(losses.detach(), gram, num_terms, num_rows)
        if self.method.reads == "shared" and any(is_shared):
            vectors = _vectors(compress(of_task[num_read:], is_shared) for of_task in of_tasks)
            vectors = _mean_over_ranks(vectors, num_terms, num_rows)
            gram = gram + (vectors @ vectors.T).to(gram)
        if not (means.isfinite().all() and gram.isfinite().all()):
            return value
        weights = self.method(means, gram).to(losses)
        plain = weights if self.method.weighs_specific else torch.ones_like(weights)
        gradients = [
            torch.tensordot(weights if shared else plain, torch.stack(of_tensor).to(weights), 1).to(tensor)
            for tensor, shared, *of_tensor in zip(inputs, [True] * num_read + is_shared, *of_tasks, strict=True)
        ]
        result: Tensor = _WithGradients.apply(value.detach(), gradients, *inputs)
        return result


def shared_by_tasks(logits: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Which of the parameters several tasks' logits depend on, ``[P]``: 1 for those, 0 for the others.

    NaN is sent back from the logits of one task after the other, and arrives at what they depend on, even through
    weights of 0. All ranks must call it.
    """
    reached = torch.zeros(logits.shape[1], len(parameters), device=logits.device)
    for task, of_task in enumerate(reached):
        sent = torch.zeros_like(logits)
        sent[:, task] = torch.nan
        back = torch.autograd.grad(logits, parameters, sent, retain_graph=True, allow_unused=True)
        for place, gradient in enumerate(back):
            of_task[place] = 0.0 if gradient is None else gradient.isnan().any()
    if _num_ranks() > 1:
        dist.all_reduce(reached, dist.ReduceOp.MAX)
    return (reached.sum(0) > 1).long()


def _vectors(of_tasks: Iterable[Iterable[Tensor]]) -> Tensor:
    """The gradients of each task as one vector, ``[T, N]``."""
    return torch.stack([torch.cat([gradient.flatten() for gradient in of_task]) for of_task in of_tasks])


def _num_ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _over_ranks(losses: Tensor, gram: Tensor | None, num_terms: int, num_rows: int) -> tuple[Tensor, Tensor]:
    """The mean losses over all ranks' rows, ``[T]``, and their gradients' products, ``[T, T]``, on the CPU.

    The gradients with respect to representations are those of a rank's mean; each row is of one rank.
    """
    parts = [losses.new_tensor([num_rows], dtype=torch.float64), losses.double() * num_terms]
    if gram is not None:
        parts.append(gram.flatten() * num_terms**2)
    sums = torch.cat(parts)
    if _num_ranks() > 1:
        dist.all_reduce(sums)
    sums, num_tasks = sums.cpu(), len(losses)
    all_rows = sums[0].clamp(min=1)
    return sums[1 : num_tasks + 1] / all_rows, (sums[num_tasks + 1 :] / all_rows**2).view(-1, num_tasks)


def _mean_over_ranks(vectors: Tensor, num_terms: int, num_rows: int) -> Tensor:
    """The gradients ``[T, N]`` of the mean losses over all ranks' rows, from those of a rank's mean."""
    if _num_ranks() == 1:
        return vectors * (num_terms / max(num_rows, 1))
    counted = torch.cat([vectors.flatten() * num_terms, vectors.new_tensor([num_rows])])
    dist.all_reduce(counted)
    return (counted[:-1] / counted[-1].clamp(min=1)).view_as(vectors)
