"""A training step taken apart, by instruments that change nothing that is computed.

On a CPU a part is processor time of the thread that trains, and the reader's is that of its own thread: other work on
the machine disturbs these least. On a GPU a part is the time between events on the stream that computes, beside which
the reader's thread works. TorchRec's pipeline there exchanges the next batch's ids during a step, in "the rest".
"""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.stacks import mean_loss
from torchrec_mtl.data import MultiTaskBatch
from torchrec_mtl.modules import FeatureArch
from torchrec_mtl.training.loop import TrainingLoop
from torchrec_mtl.training.stream import BatchStream

READER, WAITING, REST = "reader, in its own thread", "waiting for the reader", "the rest"
TABLES_FORWARD, TABLES_BACKWARD = "tables, forward", "tables, backward and update"
OVER_ARCH_FORWARD, OVER_ARCH_BACKWARD = "over-arch, forward", "over-arch, backward"
_FORWARD, _BACKWARD = (TABLES_FORWARD, OVER_ARCH_FORWARD), (OVER_ARCH_BACKWARD, TABLES_BACKWARD)
OF_STEP = (WAITING, "transfer", *_FORWARD, "loss", *_BACKWARD, "optimizer", REST)
Function = Callable[..., Any]
WARM_UP = 2  # steps; in the first, TorchRec traces the model, which must be without instruments


class Clock:
    """Gives each moment of a step to the part that was begun last and is not over."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.open: list[str] = []
        self.marks: list[tuple[str, Any]] = []

    def _mark(self, turn_to: str = "") -> None:
        if turn_to:
            self.open[-1] = turn_to
        now: Any = torch.cuda.Event(enable_timing=True) if self.on_gpu else time.thread_time()
        if self.on_gpu:
            now.record()
        self.marks.append((self.open[-1] if self.open else "", now))

    def _watch(self, tensors: Any, part: str) -> None:
        """The present part turns into ``part`` when the backward pass comes to ``tensors``."""
        for tensor in tensors if isinstance(tensors, tuple) else (tensors,):
            if part and isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda _: self._mark(part))

    def around(self, part: str, function: Function, before_inputs: str = "", before_output: str = "") -> Function:
        """``function``, timed as ``part``; what the backward pass does before its inputs and its output, timed too."""

        def timed(*arguments: Any, **options: Any) -> Any:
            self.open.append(part)
            self._mark()
            try:
                self._watch(arguments, before_inputs)
                output = function(*arguments, **options)
                self._watch(output, before_output)
                return output
            finally:
                self.open.pop()
                self._mark()

        return timed

    def take(self) -> dict[str, float]:
        """Returns the seconds of each part since the last call."""
        if self.on_gpu:
            torch.cuda.synchronize()
        seconds = dict.fromkeys(OF_STEP, 0.0)
        for (part, began), (_, ended) in zip(self.marks, self.marks[1:], strict=False):
            if part:
                seconds[part] += began.elapsed_time(ended) / 1e3 if self.on_gpu else ended - began
        self.marks.clear()
        return seconds


@contextmanager
def instruments(run: TrainingLoop, clock: Clock) -> Iterator[None]:
    """Times the parts of the steps that are taken in its context, but not of a run's first step."""
    step, model = run.step, run.model.module
    over_arch = model.get_submodule("model.over_arch")
    towers = over_arch if isinstance(over_arch, nn.ModuleList) else ()  # each follows tables of its own
    timed = [
        (BatchStream, "__next__", WAITING),
        (MultiTaskBatch, "to", "transfer"),
        (model, "forward", OVER_ARCH_FORWARD),
        *((m, "forward", TABLES_FORWARD, "", TABLES_BACKWARD) for m in model.modules() if isinstance(m, FeatureArch)),
        *((tower, "forward", OVER_ARCH_FORWARD, "", OVER_ARCH_BACKWARD) for tower in towers),
        (model.get_submodule("loss"), "forward", "loss", OVER_ARCH_BACKWARD),
        (run.pipeline, "_backward", "loss"),  # begins with it
        (step, "zero_grad", "optimizer"),
        (step, "step", "optimizer"),
    ]
    with ExitStack() as stack:
        for owner, name, part, *backward in timed if run.result.step else ():
            stack.enter_context(patch.object(owner, name, clock.around(part, getattr(owner, name), *backward)))
        yield


def check(plain: TrainingLoop, instrumented: TrainingLoop, device: torch.device, steps: int = 4) -> None:
    """Raises a `RuntimeError` unless both train alike, to the last bit."""
    clock = Clock(device)
    for number in range(1, steps + 1):
        torch.manual_seed(number)  # of dropout
        expected = mean_loss(plain)
        with instruments(instrumented, clock):
            torch.manual_seed(number)
            found = mean_loss(instrumented)
        if found != expected:
            raise RuntimeError(f"with instruments the loss of step {number} is {found!r}, not {expected!r}")


class Apart:
    """A run whose steps are taken apart."""

    def __init__(self, run: TrainingLoop, device: torch.device) -> None:
        self.run, self.clock = run, Clock(device)
        self._take_step = self.clock.around(REST, run.take_step)
        self.steps: list[dict[str, float]] = []
        self.reader: list[float] = []
        loader: Any = run.train_batches.batches
        last, make = threading.local(), loader._batch  # an epoch has a thread

        def timed(*of_step: Any) -> MultiTaskBatch:
            """Counts all that the thread did since the batch before."""
            batch, now = make(*of_step), time.thread_time()
            if hasattr(last, "time"):
                self.reader.append(now - last.time)
            last.time = now
            return batch

        loader._batch = timed

    def take(self) -> None:
        """Takes one step."""
        with instruments(self.run, self.clock):
            self._take_step()
        self.steps.append(self.clock.take())

    def parts(self) -> dict[str, list[float]]:
        """Seconds of each part in each step after the first ones; of the reader, for each batch."""
        return {READER: self.reader, **{part: [step[part] for step in self.steps[WARM_UP:]] for part in OF_STEP}}

    def sums(self) -> list[float]:
        """What adds up to each step: on a CPU the processor times of both threads, on a GPU the times on its stream."""
        parts, on_gpu = self.parts(), self.clock.on_gpu
        reader = 0.0 if on_gpu else statistics.median(parts[READER])
        return [sum(of_step) + reader for of_step in zip(*(parts[part] for part in OF_STEP), strict=True)]
