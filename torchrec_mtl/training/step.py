"""One optimizer step of all ranks together: what they must agree on, and when parameters are updated.

Ranks may have different numbers of rows, one may find a NaN, one may be asked to stop. Before each backward pass a
single small collective tells all of them, so that the loss is the mean over the rows of all ranks, and either all
ranks take the step or none does.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.optim.optimizers import in_backward_optimizer_filter

from torchrec_mtl.errors import TrainingError
from torchrec_mtl.modules import find_schedules


class NonFiniteLossError(TrainingError):
    """The loss of a batch is NaN or infinite; every rank raises this error before any update.

    Args:
        logits: logits of this rank, ``[B, T]``.
        finite: whether the loss of this rank is finite, and that of another rank is not.
        num_consecutive: number of batches skipped one after the other, this one included; 0 if none is skipped.
    """

    def __init__(self, logits: Tensor, finite: bool, num_consecutive: int = 0) -> None:
        super().__init__("the loss is not finite")
        self.logits, self.finite, self.num_consecutive = logits, finite, num_consecutive


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
        self.replicas = [m for m in model.modules() if isinstance(m, DistributedDataParallel)]
        self.schedules = find_schedules(model)
        self.stop = False  # as all ranks agreed
        self.num_calls, self.num_skipped = 0, 0
        self.last_skipped, self.num_consecutive = 0, 0  # call that was skipped, and skips up to it without a gap
        self.loss_sum, self.num_rows = 0.0, 0  # over this rank's rows since `take_sums`
        self.parts, self.part, self.usable = 1, 0, 0

    @contextmanager
    def micro_batch(self, part: int, parts: int) -> Iterator[None]:
        """Runs one pass of the pipeline: part number ``part`` of the ``parts`` that make up an optimizer step."""
        self.part, self.parts = part, parts
        if part == 0:
            self.usable = 0
        with ExitStack() as stack:
            if part < parts - 1 and self.num_calls:  # replicas learn their graph from the first pass: it must sync
                for replica in self.replicas:
                    stack.enter_context(replica.no_sync())
            yield

    # called by the pipeline as the model

    @property
    def training(self) -> bool:
        """Whether the model is in training mode."""
        return self.model.training

    def __call__(self, batch: Any) -> tuple[Tensor, Any]:
        """The loss, scaled so that the ranks' average is the mean over all rows, and the outputs of the model."""
        loss, outputs = self.model(batch)
        self.num_calls += 1
        logits = outputs[1]
        value, num_rows = float(loss.detach()), len(logits) - getattr(batch, "num_padded", 0)
        finite = math.isfinite(value)
        counts = torch.tensor([num_rows, not finite, self.stop_requested()], dtype=torch.float64)
        if dist.get_world_size() > 1:
            dist.all_reduce(counts, group=self.group)
        all_rows, num_non_finite, num_stops = counts.tolist()
        self.stop |= num_stops > 0
        if num_non_finite:
            if self.non_finite_loss == "stop":
                raise NonFiniteLossError(logits, finite)
            self._skip(logits, finite)
            return self._nothing(), outputs
        self.usable += 1
        self.loss_sum += value * len(logits)  # padded rows count in the mean loss, but add nothing to it
        self.num_rows += num_rows
        return loss * (len(logits) * dist.get_world_size() / (all_rows * self.parts)), outputs

    def _skip(self, logits: Tensor, finite: bool) -> None:
        self.num_skipped += 1
        self.num_consecutive = self.num_consecutive + 1 if self.last_skipped == self.num_calls - 1 else 1
        self.last_skipped = self.num_calls
        error = NonFiniteLossError(logits, finite, self.num_consecutive)
        if self.num_consecutive >= self.max_consecutive_skips:
            raise error
        self.on_skip(error)

    def _nothing(self) -> Tensor:
        """A loss that gives all parameters updated after the backward pass, whose replicas wait for it, gradient 0."""
        return torch.stack([(p * 0).sum() for p in self.after_backward]).sum()

    def mean_loss(self) -> float:
        """Mean loss over this rank's rows since the last `take_sums`."""
        return self.loss_sum / max(self.num_rows, 1)

    def take_sums(self) -> tuple[float, int]:
        """The sum of the losses of all ranks' rows since the last call, and the number of these rows."""
        totals = torch.tensor([self.loss_sum, self.num_rows], dtype=torch.float64)
        if dist.get_world_size() > 1:
            dist.all_reduce(totals, group=self.group)
        self.loss_sum, self.num_rows = 0.0, 0
        loss_sum, num_rows = totals.tolist()
        return loss_sum, int(num_rows)

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
