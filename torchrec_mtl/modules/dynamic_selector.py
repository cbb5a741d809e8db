"""TAFE's dynamic selector, eq. (14)-(16), and the schedule that sharpens it."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torchrec.modules.mlp import MLP

from torchrec_mtl.errors import InputError, check_at_least, check_sizes


class SmoothStepSchedule(NamedTuple):
    """The width of the smooth step: ``gamma = max(start - rate * step, end)``, under TAFE eq. (16).

    The paper counts on about a million optimizer steps; for a shorter run raise ``rate`` in proportion.
    """

    start: float = 10.0
    rate: float = 2e-4
    end: float = 1e-3

    @classmethod
    def over(cls, num_steps: int) -> "SmoothStepSchedule":
        """From the paper's start to its end in so many steps.

        Example::

            >>> round(SmoothStepSchedule.over(1000).rate, 6)
            0.009999
        """
        return cls(rate=(cls().start - cls().end) / num_steps)


Schedule = SmoothStepSchedule | tuple[float, float, float] | Literal["run"]


class Scheduled(Protocol):
    """A module that changes from step to step of the training; `find_schedules` knows it by this method."""

    def advance_schedule(self, num_steps: int | None = None) -> None:
        """One optimizer step of a run of ``num_steps``, None if that is not known."""


def find_schedules(model: nn.Module) -> list[Scheduled]:
    """The modules in ``model`` that `advance_schedules` moves, for a loop that looks for them once."""
    # the type is asked, for compiled modules pass on what they wrap, which is in the model too
    return [cast(Scheduled, module) for module in model.modules() if hasattr(type(module), "advance_schedule")]


def advance_schedules(model: nn.Module, num_steps: int | None = None) -> None:
    """Moves every schedule in ``model`` by one. Call it once after each optimizer step, on every rank.

    `torchrec_mtl.training.loop` does. Not in evaluation, nor between micro-batches, nor for a step that was skipped.

    Args:
        model: has modules with a schedule, or none.
        num_steps: optimizer steps of the whole run, for schedules that are a share of it.

    Raises:
        InputError: if a schedule is a share of the run and ``num_steps`` is not given.

    Example::

        >>> model = nn.Sequential(DynamicSelector(in_features=12, num_inducing_points=5))
        >>> optimizer = torch.optim.SGD(model.parameters())
        >>> for _ in range(3):
        ...     optimizer.step()
        ...     advance_schedules(model)
        >>> model[0].step
        tensor(3)
    """
    for schedule in find_schedules(model):
        schedule.advance_schedule(num_steps)


def smooth_step(x: Tensor, gamma: Tensor | float) -> Tensor:
    """TAFE eq. (16): a cubic from exactly 0 at ``-gamma / 2`` and below to exactly 1 at ``gamma / 2`` and above.

    Example::

        >>> smooth_step(torch.tensor([-5.0, 0.0, 2.0, 5.0]), 8.0)
        tensor([0.0000, 0.5000, 0.8438, 1.0000])
    """
    u = (x / gamma).clamp(-0.5, 0.5)
    return (1.5 - 2 * u * u) * u + 0.5


class DynamicSelector(nn.Module):
    """Which inducing points a sample uses: ``z = f_D(MLP(H))``, TAFE eq. (14)-(16).

    The schedule's step is state, saved and restored with the module. The training loop moves it:
    `advance_schedules` after each optimizer step.

    Args:
        in_features: ``F * D``, the width of the flattened fields.
        num_inducing_points: ``K``.
        layer_sizes: hidden layers of the MLP; the paper asks for "a standard MLP layer".
        schedule: the smooth step's; or ``"run"``, from the paper's start to its end in equal steps, which it reaches
            with the run's last step.

    Raises:
        InputError: if a size is below 1, or if the schedule is another word than ``"run"``, its ``start`` or ``end``
            is not positive, or its ``rate`` is negative.

    Example::

        >>> selector = DynamicSelector(in_features=12, num_inducing_points=5)
        >>> z = selector(torch.randn(3, 12))
        >>> z.shape, bool((z >= 0).all() and (z <= 1).all())
        (torch.Size([3, 5]), True)
    """

    step: Tensor
    num_steps: Tensor

    def __init__(
        self,
        in_features: int,
        num_inducing_points: int,
        layer_sizes: Sequence[int] = (64,),
        schedule: Schedule = SmoothStepSchedule(),
    ) -> None:
        super().__init__()
        check_at_least(1, in_features=in_features, num_inducing_points=num_inducing_points)
        check_sizes(selector_layer_sizes=layer_sizes)
        if isinstance(schedule, str) and schedule != "run":
            raise InputError(f"`schedule` (={schedule!r}) must be 'run' or have a `start`, a `rate` and an `end`")
        self.is_of_run = schedule == "run"
        self.schedule = SmoothStepSchedule(*(() if isinstance(schedule, str) else schedule))
        if self.schedule.start <= 0 or self.schedule.end <= 0 or self.schedule.rate < 0:
            raise InputError(f"`schedule` (={self.schedule}) must have `start` and `end` above 0, `rate` not below")
        self.mlp = MLP(in_features, list(layer_sizes)) if layer_sizes else nn.Identity()
        self.output = nn.Linear(layer_sizes[-1] if layer_sizes else in_features, num_inducing_points)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        if self.is_of_run:
            self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))

    def reset_parameters(self) -> None:
        """Back to step 0; the layers reset themselves."""
        self.step.zero_()
        if self.is_of_run:
            self.num_steps.zero_()

    def advance_schedule(self, num_steps: int | None = None) -> None:
        """One step of the schedule, of ``num_steps`` in the run.

        Raises:
            InputError: if the schedule is ``"run"`` and ``num_steps`` is not given, or is below 1.
        """
        if self.is_of_run:
            if num_steps is None:
                raise InputError("`schedule` (='run') needs the run's steps: give `advance_schedules` its `num_steps`")
            check_at_least(1, num_steps=num_steps)
            self.num_steps.fill_(num_steps)
        self.step += 1

    def per_step(self) -> SmoothStepSchedule:
        """The schedule by its steps; one of ``"run"``, once the first step has told how many there are."""
        return SmoothStepSchedule.over(int(self.num_steps)) if self.is_of_run else self.schedule

    def gamma(self) -> Tensor:
        """The present width of the smooth step, a scalar."""
        start, rate, end = self.schedule
        step = self.step.double()
        if self.is_of_run:
            left = 1 - step / self.num_steps.clamp(min=1)  # exactly 0 at the end
            return end + (start - end) * left.clamp(min=0)
        return (start - rate * step).clamp(min=end)

    def forward(self, inputs: Tensor) -> Tensor:
        """Flattened fields ``[B, F * D]`` to ``z [B, K]`` in [0, 1], in fp32 at least: its zeros are a mask."""
        logits = self.output(self.mlp(inputs))  # TAFE eq. (14)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return smooth_step(logits, self.gamma())  # TAFE eq. (15)
