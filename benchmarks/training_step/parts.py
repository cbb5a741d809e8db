"""A training step taken apart, by hooks that change nothing that is computed.

On a CPU a part is processor time of the thread that trains, and the reader's of its own thread: other work on the
machine disturbs that least. On a GPU a part is the time between events on the stream that computes; the reader's thread
works beside it. TorchRec's pipeline there exchanges the next batch's ids during a step, which is in "the rest".
"""

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks import record
from benchmarks.training_step.case import Case
from benchmarks.training_step.clock import (
    OF_STEP,
    OVER_ARCH_BACKWARD,
    OVER_ARCH_FORWARD,
    READER,
    REST,
    TABLES_BACKWARD,
    TABLES_FORWARD,
    Clock,
    reader_seconds,
)
from torchrec_mtl.data import BatchLoader, MultiTaskBatch
from torchrec_mtl.modules import FeatureArch
from torchrec_mtl.training.faults import Recorded


def _hooks(case: Case, clock: Clock, stack: ExitStack) -> None:
    """On the boundaries between tables, over-arch and loss, of the forward pass and of the backward pass."""

    def add(module: nn.Module, part: str, before: Callable[..., None], after: Callable[..., None]) -> None:
        def enter(_: nn.Module, inputs: Any) -> None:
            clock.begin(part)
            before(inputs)

        def leave(_: nn.Module, inputs: Any, output: Any) -> None:
            after(output)
            clock.end()

        stack.callback(module.register_forward_pre_hook(enter).remove)
        stack.callback(module.register_forward_hook(leave).remove)

    def on_gradient(part: str) -> Callable[..., None]:
        def watch(tensors: Any) -> None:
            for tensor in tensors if isinstance(tensors, tuple) else (tensors,):
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(lambda _: clock.turn_to(part))

        return watch

    def nothing(_: Any) -> None:
        pass

    add(case.train_model, OVER_ARCH_FORWARD, nothing, nothing)
    add(case.train_model.get_submodule("loss"), "loss", on_gradient(OVER_ARCH_BACKWARD), nothing)
    for module in case.train_model.modules():
        if isinstance(module, FeatureArch):
            add(module, TABLES_FORWARD, nothing, on_gradient(TABLES_BACKWARD))
    over_arch = case.train_model.get_submodule("model.over_arch")
    for tower in over_arch if isinstance(over_arch, nn.ModuleList) else ():  # each follows tables of its own
        add(tower, OVER_ARCH_FORWARD, nothing, on_gradient(OVER_ARCH_BACKWARD))


@contextmanager
def instruments(case: Case, clock: Clock) -> Iterator[None]:
    """Puts them into a run that has taken a step: by then TorchRec has traced the model."""
    step, pipeline = case.training.step, case.training.pipeline
    with ExitStack() as stack:
        _hooks(case, clock, stack)
        for owner, name, part in [
            (Recorded, "__next__", "waiting for the reader"),
            (MultiTaskBatch, "to", "transfer"),
            (step, "zero_grad", "optimizer"),
            (step, "step", "optimizer"),
            (pipeline, "_backward", "loss"),  # begins with it
        ]:
            stack.enter_context(patch.object(owner, name, clock.around(part, getattr(owner, name))))
        yield


def check(plain: Case, instrumented: Case, device: torch.device, steps: int = 4) -> None:
    """Both must train alike, to the last bit.

    Raises:
        RuntimeError: if they do not; names the step.
    """
    clock = Clock(device)
    for number in range(steps):
        torch.manual_seed(number)  # of dropout
        expected = plain.mean_loss()
        with instruments(instrumented, clock) if instrumented.has_begun else nullcontext():
            torch.manual_seed(number)
            found = instrumented.mean_loss()
        if found != expected:
            told = f"with instruments the loss of step {number + 1} is {found!r}, not {expected!r}"
            raise RuntimeError(f"{plain.system}: {told}")


@dataclass
class Measured:
    """Seconds of each part, a round each; of the reader, a batch each."""

    parts: dict[str, list[float]]
    on_gpu: bool

    def sums(self) -> list[float]:
        """What adds up to a step: on a CPU processor times of both threads; on a GPU what is on its stream."""
        beside = 0.0 if self.on_gpu else statistics.median(self.parts[READER])
        return [sum(of_round) + beside for of_round in zip(*(self.parts[part] for part in OF_STEP), strict=True)]

    def residual(self, whole: list[float]) -> float:
        """By how many percent the parts fall short of ``whole`` steps in the same rounds."""
        return 100 * (1 - record.ratio(self.sums(), whole))


class Apart:
    """A run whose steps are taken apart."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.clock = case, Clock(device)
        self._take_step = self.clock.around(REST, case.take_step)
        self.rounds: list[dict[str, float]] = []

    def take(self) -> None:
        """One step."""
        with instruments(self.case, self.clock) if self.case.has_begun else nullcontext():
            self._take_step()
        self.rounds.append(self.clock.take())

    def since(self, first: int, of_reader: Mapping[BatchLoader, list[float]]) -> Measured:
        """What was measured from the round ``first`` on."""
        parts = {part: [of_round[part] for of_round in self.rounds[first:]] for part in OF_STEP}
        return Measured({READER: of_reader[self.case.loader], **parts}, self.clock.on_gpu)


def measure(case: Case, device: torch.device, repeats: int) -> tuple[Measured, list[float]]:
    """A step without instruments and one with them take turns: the parts of these, and those as a whole."""
    apart = Apart(case, device)
    timer = partial(record.seconds, device="cuda") if device.type == "cuda" else record.processor_seconds
    with reader_seconds() as of_reader:
        candidates = {"whole": case.take_step, "apart": apart.take}
        whole = record.in_turns(candidates, repeats, timer, warm_up=2)["whole"]
    return apart.since(2, of_reader), whole
