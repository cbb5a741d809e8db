"""TAFE's dynamic selector, eq. (14)-(16), and the schedule that sharpens it."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import check_type, checked
from torchrec_mtl.errors import InputError, check_at_least, check_sizes
from torchrec_mtl.modules.mlp import MLP


class SmoothStepSchedule(NamedTuple):
    """The width of the smooth step: ``gamma = max(start - rate * step, end)``, below TAFE eq. (16).

    The paper assumes about a million optimizer steps. For a shorter run, raise ``rate`` in proportion.
    """

    start: float = 10.0
    rate: float = 2e-4
    end: float = 1e-3

    @classmethod
    def over(cls, num_steps: int) -> "SmoothStepSchedule":
        """Returns the schedule that goes from the paper's start to its end in ``num_steps`` steps.

        Raises:
            InputError: if ``num_steps`` is below 1.

        Example::

            >>> round(SmoothStepSchedule.over(1000).rate, 6)
            0.009999
        """
        check_type("num_steps", num_steps, int)
        check_at_least(1, num_steps=num_steps)
        return cls(rate=(cls().start - cls().end) / num_steps)


Schedule = SmoothStepSchedule | tuple[float, float, float] | Literal["run"]


class Scheduled(Protocol):
    """A module that changes with every training step; `find_schedules` recognises it by this method."""

    def advance_schedule(self, num_steps: int | None = None) -> None:
        """Advances by one optimizer step of a run of ``num_steps`` steps; None if that number is not known."""


@checked
def find_schedules(model: nn.Module) -> list[Scheduled]:
    """Returns the modules in ``model`` that `advance_schedules` advances, so that a loop can look for them once."""
    # look at the type: a compiled module forwards attributes of the module it wraps, which is in the model too
    return [cast(Scheduled, module) for module in model.modules() if hasattr(type(module), "advance_schedule")]


def advance_schedules(model: nn.Module, num_steps: int | None = None) -> None:
    """Advances every schedule in ``model`` by one step. Call it once after each optimizer step, on every rank.

    `torchrec_mtl.training.loop` does so. Do not call it in evaluation, between micro-batches, or after a skipped step.

    Args:
        model: model with any number of modules that have a schedule.
        num_steps: number of optimizer steps in the whole run, for schedules that span the run.

    Raises:
        InputError: if a schedule spans the run and ``num_steps`` is not given.

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


def check_gamma(gamma: Tensor | float) -> None:
    """Raises `InputError` unless the width of a smooth step is above 0 and finite; of a tensor reads only the shape."""
    if isinstance(gamma, Tensor):
        if gamma.ndim:
            raise InputError(f"`gamma` (of shape {list(gamma.shape)}) must be a number")
        return
    check_at_least(0, gamma=gamma)
    if not gamma:
        raise InputError(f"`gamma` (={gamma}) must be above 0")


def smooth_step(x: Tensor, gamma: Tensor | float) -> Tensor:
    """TAFE eq. (16): a cubic from exactly 0 at ``-gamma / 2`` and below to exactly 1 at ``gamma / 2`` and above.

    Raises:
        InputError: if ``x`` is no tensor, or ``gamma`` is neither a number above 0 nor a tensor of one.

    Example::

        >>> smooth_step(torch.tensor([-5.0, 0.0, 2.0, 5.0]), 8.0)
        tensor([0.0000, 0.5000, 0.8438, 1.0000])
    """
    if not isinstance(x, Tensor | torch.fx.Proxy):
        raise InputError(f"`x` (a {type(x).__name__}) must be a tensor")
    if not isinstance(gamma, torch.fx.Proxy):
        check_gamma(gamma)
    u = (x / gamma).clamp(-0.5, 0.5)
    return (1.5 - 2 * u * u) * u + 0.5


class DynamicSelector(nn.Module):
    """Selects the inducing points that a sample uses: ``z = f_D(MLP(H))``, TAFE eq. (14)-(16).

    The step of the schedule is state, saved and restored with the module. The training loop advances it by calling
    `advance_schedules` after each optimizer step.

    Args:
        in_features: width of the flattened fields, ``F * D``.
        num_inducing_points: number of inducing points, ``K``.
        layer_sizes: hidden layer widths of the MLP; the paper only says "a standard MLP layer".
        schedule: schedule of the smooth step's width; or ``"run"``, which falls in equal steps from the paper's start
            to its end, reached at the last step of the run.

    Raises:
        InputError: if a size is below 1, if the schedule is a string other than ``"run"``, if its ``end`` is not
            positive or above its ``start``, or if its ``rate`` is negative, or one of them not finite.

    Example::

        >>> selector = DynamicSelector(in_features=12, num_inducing_points=5)
        >>> z = selector(torch.randn(3, 12))
        >>> z.shape, bool((z >= 0).all() and (z <= 1).all())
        (torch.Size([3, 5]), True)
    """

    step: Tensor
    num_steps: Tensor

    @checked
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
        self.spans_run = schedule == "run"
        self.schedule = SmoothStepSchedule(*(() if isinstance(schedule, str) else schedule))
        start, rate, end = self.schedule
        if not (0 < end <= start < math.inf and 0 <= rate < math.inf):  # NaN neither
            rule = "must have an `end` above 0, a `start` of at least that, and a `rate` of at least 0, all finite"
            raise InputError(f"`schedule` (={self.schedule}) {rule}")
        self.mlp = MLP(in_features, layer_sizes) if layer_sizes else nn.Identity()
        self.output = nn.Linear(layer_sizes[-1] if layer_sizes else in_features, num_inducing_points)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        if self.spans_run:
            self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))

    def reset_parameters(self) -> None:
        """Sets the schedule back to step 0; the layers reset themselves."""
        self.step.zero_()
        if self.spans_run:
            self.num_steps.zero_()

    def advance_schedule(self, num_steps: int | None = None) -> None:
        """Advances the schedule by one of the ``num_steps`` steps of the run.

        Raises:
            InputError: if the schedule is ``"run"`` and ``num_steps`` is not given, or is below 1.
        """
        if self.spans_run:
            if num_steps is None:
                raise InputError("`schedule` (='run') needs the run's steps: give `advance_schedules` its `num_steps`")
            check_type("num_steps", num_steps, int)
            check_at_least(1, num_steps=num_steps)
            self.num_steps.fill_(num_steps)
        self.step += 1

    def per_step(self) -> SmoothStepSchedule:
        """Returns the schedule per step; for ``"run"``, only after the first step has set the number of steps."""
        return SmoothStepSchedule.over(int(self.num_steps)) if self.spans_run else self.schedule

    def gamma(self) -> Tensor:
        """Returns the current width of the smooth step, a scalar."""
        start, rate, end = self.schedule
        step = self.step.double()
        if self.spans_run:
            left = 1 - step / self.num_steps.clamp(min=1)  # exactly 0 at the end
            return end + (start - end) * left.clamp(min=0)
        return (start - rate * step).clamp(min=end)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps flattened fields ``[B, F * D]`` to ``z [B, K]`` in [0, 1], at least in fp32: its zeros are a mask."""
        logits = self.output(self.mlp(inputs))  # TAFE eq. (14)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return smooth_step(logits, self.gamma())  # TAFE eq. (15)
