"""One optimizer step of all ranks together: what they must agree on, and when parameters move.

Ranks may have different numbers of rows, one may find a NaN, one may be told to stop. Before each backward pass a
single small collective tells all of them, so that the loss is the mean over the rows of all ranks, and either all
step or none does.
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
    """The loss of a batch is NaN or infinite; every rank raises it, before anything is stepped.

    Args:
        logits: this rank's, ``[B, T]``.
        finite: whether this rank's loss is finite, and another's is not.
    """

    def __init__(self, logits: Tensor, finite: bool) -> None:
        super().__init__("the loss is not finite")
        self.logits, self.finite = logits, finite


class Step:
    """The model as a pipeline calls it, and the optimizer as a pipeline steps it.

    Args:
        model: a `MultiTaskTrain`, distributed by `distribute`.
        optimizer: its optimizer.
        group: a gloo group of all ranks.
        non_finite_loss: ``"stop"`` or ``"skip"``, see `TrainingConfig`.
        max_gradient_norm: see `OptimizerConfig`.
        stop_requested: whether this rank was told to stop.
        num_steps: of the whole run, for schedules that are a share of it, see `advance_schedules`.
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
    ) -> None:
        self.model, self.optimizer, self.group = model, optimizer, group
        self.non_finite_loss, self.max_gradient_norm = non_finite_loss, max_gradient_norm
        self.stop_requested, self.num_steps = stop_requested, num_steps
        self.after_backward = [p for _, p in in_backward_optimizer_filter(model.named_parameters())]
        self.replicas = [m for m in model.modules() if isinstance(m, DistributedDataParallel)]
        self.schedules = find_schedules(model)
        self.stop = False  # as agreed
        self.num_calls, self.num_skipped = 0, 0
        self.loss_sum, self.num_rows = 0.0, 0  # over this rank's rows, until `take_sums`
        self.parts, self.part, self.usable = 1, 0, 0

    @contextmanager
    def micro_batch(self, part: int, parts: int) -> Iterator[None]:
        """One pass of the pipeline, the ``part``-th of ``parts`` that make up an optimizer step."""
        self.part, self.parts = part, parts
        if part == 0:
            self.usable = 0
        with ExitStack() as stack:
            if part < parts - 1 and self.num_calls:  # replicas learn their graph from the first pass, which must sync
                for replica in self.replicas:
                    stack.enter_context(replica.no_sync())
            yield

    # what the pipeline takes for the model

    @property
    def training(self) -> bool:
        """The model's."""
        return self.model.training

    def __call__(self, batch: Any) -> tuple[Tensor, Any]:
        """The loss to differentiate, scaled so that the ranks' average is the mean over all rows; then the outputs."""
        loss, outputs = self.model(batch)
        self.num_calls += 1
        logits = outputs[1]
        value, num_rows = float(loss.detach()), len(logits) - getattr(batch, "num_padded", 0)
        finite = math.isfinite(value)
        told = torch.tensor([num_rows, not finite, self.stop_requested()], dtype=torch.float64)
        if dist.get_world_size() > 1:
            dist.all_reduce(told, group=self.group)
        all_rows, num_non_finite, num_stops = told.tolist()
        self.stop |= num_stops > 0
        if num_non_finite:
            if self.non_finite_loss == "stop":
                raise NonFiniteLossError(logits, finite)
            self.num_skipped += 1
            return self._nothing(), outputs
        self.usable += 1
        self.loss_sum += value * len(logits)  # padded rows add nothing to the loss, but are divided by
        self.num_rows += num_rows
        return loss * (len(logits) * dist.get_world_size() / (all_rows * self.parts)), outputs

    def _nothing(self) -> Tensor:
        """A loss with gradient 0 for what is stepped after the backward pass, which is waited for by all replicas."""
        return torch.stack([(p * 0).sum() for p in self.after_backward]).sum()

    def mean_loss(self) -> float:
        """Over this rank's rows since `take_sums`."""
        return self.loss_sum / max(self.num_rows, 1)

    def take_sums(self) -> tuple[float, int]:
        """The sum of the losses of all ranks' rows since the last call, and how many rows these were."""
        totals = torch.tensor([self.loss_sum, self.num_rows], dtype=torch.float64)
        if dist.get_world_size() > 1:
            dist.all_reduce(totals, group=self.group)
        self.loss_sum, self.num_rows = 0.0, 0
        loss_sum, num_rows = totals.tolist()
        return loss_sum, int(num_rows)

    # what the pipeline takes for the optimizer

    def zero_grad(self) -> None:
        """Before the first part of a step."""
        if self.part == 0:
            self.optimizer.zero_grad()

    def step(self) -> None:
        """After the last part of a step, unless none of them could be used."""
        if self.part < self.parts - 1 or not self.usable:
            return
        if self.max_gradient_norm:
            stepped = [p for p in self.after_backward if p.grad is not None]
            nn.utils.clip_grad_norm_(stepped, self.max_gradient_norm)
        self.optimizer.step()
        for schedule in self.schedules:
            schedule.advance_schedule(self.num_steps)
