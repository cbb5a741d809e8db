"""One optimizer step of all ranks together: what they must agree on, and when parameters are updated.

Ranks may have different numbers of rows, one may find a NaN, one may be asked to stop. The batch itself says how many
rows all ranks have, so that the loss is the mean over them. The dense backward pass updates nothing. After it, a small
collective on the device tells all ranks whether every loss and gradient is finite; that is the only time that the host
waits for the device. Then either all ranks go on, with the tables' backward pass, which updates them, or none does.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.optim.optimizers import in_backward_optimizer_filter

from torchrec_mtl.errors import InputError, TrainingError
from torchrec_mtl.modules import find_schedules
from torchrec_mtl.training.averaging import Averaging, average, buffers
from torchrec_mtl.training.table_gate import TableGate, leaves


class NonFiniteLossError(TrainingError):
    """The loss of a batch, or its gradient, is NaN or infinite; every rank raises this error before any update.

    Args:
        logits: logits of this rank, ``[B, T]``.
        finite: whether this rank's is finite, and that of another rank is not.
        num_consecutive: number of batches skipped one after the other, this one included; 0 if none is skipped.
        what: ``"loss"``, or ``"gradient"`` where the losses of all ranks are finite.
    """

    def __init__(self, logits: Tensor, finite: bool, num_consecutive: int = 0, what: str = "loss") -> None:
        super().__init__(f"the {what} is not finite")
        self.logits, self.finite, self.num_consecutive, self.what = logits, finite, num_consecutive, what


def _num_rows_of_all(batch: Any) -> int:
    """Number of rows that all ranks' batches stand for, without padding."""
    num_all: int | None = getattr(batch, "num_rows_of_all", None)
    if num_all is not None:
        return num_all
    if num_padded := getattr(batch, "num_padded", 0):
        raise InputError(f"`num_padded` (={num_padded}) must come with `num_rows_of_all`, on every rank")
    return len(batch.labels) * dist.get_world_size()


def _largest(gradients: list[Tensor]) -> Tensor:
    """The largest magnitude, a scalar; infinite or NaN if one of the gradients is."""
    if any(gradient.is_cuda for gradient in gradients):
        return nn.utils.get_total_norm(gradients, math.inf)
    # PyTorch's norm takes thirty times as long on a CPU
    extremes = [each for gradient in gradients if gradient.numel() for each in torch.aminmax(gradient)]
    return torch.stack(extremes).abs().max() if extremes else torch.zeros(())


class Step:
    """The model and the optimizer as a TorchRec pipeline calls them.

    Args:
        model: `MultiTaskTrain`, distributed by `distribute`.
        optimizer: optimizer that `distribute` returned with it.
        group: gloo group of all ranks.
        non_finite_loss: ``"stop"`` or ``"skip"``, see `TrainingConfig`.
        max_gradient_norm: see `OptimizerConfig`.
        stop_requested: function that says whether this rank was asked to stop.
        num_steps: number of steps in the whole run, for schedules that depend on it, see `advance_schedules`.
        max_consecutive_skips: see `TrainingConfig`.
        on_skip: function called on every rank with the error that a skipped batch would have raised.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        group: dist.ProcessGroup,
        non_finite_loss: str = "stop",
        max_gradient_norm: float = 0.0,
        stop_requested: Callable[[], bool] = lambda: False,
        num_steps: int | None = None,
        max_consecutive_skips: int = 10,
        on_skip: Callable[[NonFiniteLossError], object] = lambda error: None,
    ) -> None:
        self.model, self.optimizer, self.group = model, optimizer, group
        self.non_finite_loss, self.max_gradient_norm = non_finite_loss, max_gradient_norm
        self.stop_requested, self.num_steps = stop_requested, num_steps
        self.max_consecutive_skips, self.on_skip = max_consecutive_skips, on_skip
        self.after_backward = [p for _, p in in_backward_optimizer_filter(model.named_parameters())]
        self.gate = TableGate(model)
        behind = {id(table) for table in self.gate.replicated}
        self.before_gate = [leaf for leaf in leaves(self.after_backward) if id(leaf) not in behind]
        self.averaging: Averaging = getattr(model, "averaging", None) or Averaging(model)
        self.schedules = find_schedules(model)
        self.stop = False  # as all ranks agreed
        self.num_calls, self.num_skipped = 0, 0
        self.last_skipped, self.num_consecutive = 0, 0  # call that was skipped, and skips up to it without a gap
        device = self.after_backward[0].device
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)  # over this rank's rows since `take_sums`
        self.num_rows = 0.0
        self.parts, self.part, self.usable = 1, 0, 0
        self._kept: dict[Tensor, Tensor] = {}  # gradients of the parts before

    @contextmanager
    def micro_batch(self, part: int, parts: int) -> Iterator[None]:
        """Runs one pass of the pipeline: part number ``part`` of the ``parts`` that make up an optimizer step."""
        self.part, self.parts = part, parts
        if part == 0:
            self.usable = 0
        self.averaging.is_due = part == parts - 1
        try:
            yield
        finally:
            self.averaging.is_due = True

    # called by the pipeline as the model

    @property
    def training(self) -> bool:
        """Whether the model is in training mode."""
        return self.model.training

    def __call__(self, batch: Any) -> tuple[Tensor, Any]:
        """The loss, scaled so that the ranks' average is the mean over all rows, and the outputs of the model."""
        self._kept = {p: p.grad.clone() for p in self.before_gate if p.grad is not None} if self.usable else {}
        with self.gate.held():
            loss, outputs = self.model(batch)
        self.num_calls += 1
        num_all = _num_rows_of_all(batch)
        self._loss, self._logits, self._num_rows = loss.detach(), outputs[1], num_all / dist.get_world_size()
        return loss * (len(self._logits) * dist.get_world_size() / (num_all * self.parts)), outputs

    # called by the pipeline in the place of ``loss.backward()``

    def backward(self, loss: Tensor) -> None:
        """Makes the gradients of what is updated after it, and updates the other tables, unless a rank has a NaN.

        Raises:
            NonFiniteLossError: on every rank, if a loss or gradient is not finite and the run is to stop then.
        """
        loss.backward()
        largest = _largest(self._gradients() + self.gate.gradients())
        own = ~torch.stack([self._loss, largest]).isfinite()
        flags = torch.cat([own, own.new_full((1,), self.stop_requested())]).int()
        if dist.get_world_size() > 1:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        *bad, stop = flags.tolist()  # the host waits for the device here, and nowhere else in a step
        self.stop |= bool(stop)
        if any(bad):
            of_loss = bool(bad[0])
            self._skip("loss" if of_loss else "gradient", not own[0 if of_loss else 1])
            return
        self.gate.open()
        self.usable += 1
        # padded rows count in the mean loss, but add nothing to it
        self.loss_sum.add_(self._loss, alpha=len(self._logits))
        self.num_rows += self._num_rows

    def _gradients(self) -> list[Tensor]:
        """The gradients of this step so far, of all that is updated after the backward pass and not behind the gate."""
        return [p.grad for p in self.before_gate if p.grad is not None]

    def _skip(self, what: str, finite: bool) -> None:
        if self.non_finite_loss == "stop":
            raise NonFiniteLossError(self._logits, finite, what=what)
        self.num_skipped += 1
        self.num_consecutive = self.num_consecutive + 1 if self.last_skipped == self.num_calls - 1 else 1
        self.last_skipped = self.num_calls
        self._take_back()
        error = NonFiniteLossError(self._logits, finite, self.num_consecutive, what)
        if self.num_consecutive >= self.max_consecutive_skips:
            raise error
        self.on_skip(error)

    def _take_back(self) -> None:
        """Leaves the gradients as if this part of the step had not been."""
        for p in self.before_gate:
            if p.grad is not None:
                p.grad.copy_(self._kept.get(p, torch.zeros_like(p)))
        self.gate.pass_by()
        if self.averaging.is_due and self.usable and dist.get_world_size() > 1:  # the mean had this part in it
            for buffer in buffers(self._gradients()):
                average(buffer)

    def mean_loss(self) -> float:
        """Mean loss over this rank's rows since the last `take_sums`."""
        return float(self.loss_sum) / max(self.num_rows, 1.0)

    def take_sums(self) -> tuple[float, int]:
        """The sum of the losses of all ranks' rows since the last call, and the number of these rows."""
        totals = torch.tensor([float(self.loss_sum), self.num_rows], dtype=torch.float64)
        if dist.get_world_size() > 1:
            dist.all_reduce(totals, group=self.group)
        self.loss_sum.zero_()
        self.num_rows = 0.0
        loss_sum, num_rows = totals.tolist()
        return loss_sum, round(num_rows)

    # called by the pipeline as the optimizer

    def zero_grad(self) -> None:
        """Clears the gradients before the first part of a step."""
        if self.part == 0:
            self.optimizer.zero_grad()

    def step(self) -> None:
        """Updates the parameters after the last part of a step, unless no part could be used."""
        if self.part < self.parts - 1 or not self.usable:
            return
        if self.max_gradient_norm:
            stepped = [p for p in self.after_backward if p.grad is not None]
            nn.utils.clip_grad_norm_(stepped, self.max_gradient_norm)
        self.optimizer.step()
        for schedule in self.schedules:
            schedule.advance_schedule(self.num_steps)
