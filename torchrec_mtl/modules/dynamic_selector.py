"""TAFE's dynamic selector, eq. (14)-(16), and the schedule that sharpens it."""

import functools
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torchrec.modules.mlp import MLP
from torchrec.optim.keyed import KeyedOptimizer

from torchrec_mtl.errors import InputError


class SmoothStepSchedule(NamedTuple):
    """The width of the smooth step: ``gamma = max(start - rate * step, end)``, under TAFE eq. (16).

    The paper counts on about a million optimizer steps; for a shorter run raise ``rate`` in proportion.
    """

    start: float = 10.0
    rate: float = 2e-4
    end: float = 1e-3


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

    The schedule's step is state: saved and restored with the module, and moved by one whenever a
    `torch.optim.Optimizer` that holds the selector's parameters steps. So it does not move in evaluation, with
    micro-batches, under recomputation, or where a gradient scaler skips the step. An optimizer that keeps
    copies of the parameters instead is not seen: call `advance` after its step.

    Args:
        in_features: ``F * D``, the width of the flattened fields.
        num_inducing_points: ``K``.
        layer_sizes: hidden layers of the MLP; the paper asks for "a standard MLP layer".
        schedule: the smooth step's.

    Raises:
        InputError: if the schedule's ``start`` and ``end`` are not positive or its ``rate`` is negative.

    Example::

        >>> selector = DynamicSelector(in_features=12, num_inducing_points=5)
        >>> z = selector(torch.randn(3, 12))
        >>> z.shape, bool((z >= 0).all() and (z <= 1).all())
        (torch.Size([3, 5]), True)
    """

    step: Tensor

    def __init__(
        self,
        in_features: int,
        num_inducing_points: int,
        layer_sizes: Sequence[int] = (64,),
        schedule: SmoothStepSchedule | tuple[float, float, float] = SmoothStepSchedule(),
    ) -> None:
        super().__init__()
        schedule = SmoothStepSchedule(*schedule)
        if schedule.start <= 0 or schedule.end <= 0 or schedule.rate < 0:
            raise InputError(f"`schedule` (={schedule}) must have `start` and `end` above 0, `rate` not below")
        self.schedule = schedule
        self.mlp = MLP(in_features, list(layer_sizes)) if layer_sizes else nn.Identity()
        self.output = nn.Linear(layer_sizes[-1] if layer_sizes else in_features, num_inducing_points)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        _watch(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _watch(self)

    def reset_parameters(self) -> None:
        """Back to step 0; the layers reset themselves."""
        self.step.zero_()

    def advance(self) -> None:
        """One step of the schedule."""
        self.step += 1

    def gamma(self) -> Tensor:
        """The present width of the smooth step, a scalar."""
        start, rate, end = self.schedule
        return (start - rate * self.step.double()).clamp(min=end)

    def forward(self, inputs: Tensor) -> Tensor:
        """Flattened fields ``[B, F * D]`` to ``z [B, K]`` in [0, 1], in fp32 at least: its zeros are a mask."""
        logits = self.output(self.mlp(inputs))
        return smooth_step(logits.to(torch.promote_types(logits.dtype, torch.float32)), self.gamma())


_selectors: "weakref.WeakSet[DynamicSelector]" = weakref.WeakSet()


def _watch(selector: DynamicSelector) -> None:
    _hook_optimizers()
    _selectors.add(selector)


@functools.cache
def _hook_optimizers() -> None:
    register_optimizer_step_post_hook(_advance_stepped)


def _advance_stepped(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Advances the selectors whose parameters this optimizer has just stepped; one parameter stands for all."""
    if not _selectors or isinstance(optimizer, KeyedOptimizer):  # TorchRec's wrap another, which comes here too
        return
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for selector in list(_selectors):
        if id(selector.output.bias) in stepped:
            selector.advance()
