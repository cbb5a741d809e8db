"""A fixed training step of every system does what it did, in counts that depend on no clock.

The step is all that the loop does for one, on the same rows, sizes and weights each time. A launch is an operator that
writes memory, of PyTorch, fbgemm or ours (on a GPU most are a kernel each); an allocation is a block taken from
PyTorch's allocator; a Python instruction is a bytecode that the interpreter executes; FLOPs are those of matrix
products, forward and backward. ``python -m tests.golden.test_counts`` records them in ``counts.csv``.
"""

import csv
import gc
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.record import versions
from benchmarks.training_step import case
from torchrec_mtl.ops import library
from torchrec_mtl.training.process_group import process_group

CPU = torch.device("cpu")
VALUES = Path(__file__).with_name("counts.csv")
RECORDED = {(row["system"], row["attention"]): row for row in csv.DictReader(VALUES.read_text().splitlines())}
SIZE = case.Size(batch_size=256, num_fields=8, fewest_rows=1000, most_rows=1000)
WARM_UP = 3  # steps
ATTENTION = {
    "PyTorch": {"TORCHREC_MTL_ATTENTION": "reference", "TORCHREC_MTL_INDUCING_ATTENTION": "compact"},
    "C++": {"TORCHREC_MTL_ATTENTION": "cpp", "TORCHREC_MTL_INDUCING_ATTENTION": "cpp"},
}
STEPS = [*((system, "PyTorch") for system in case.SYSTEMS), ("bpcm", "C++"), ("tafe", "C++")]
EQUAL = ("parameters", "flops", "launches")
WITHIN = ("bytes_written", "allocations", "bytes_allocated", "python_instructions")  # 5 %
_PACKAGES = [version for version in versions().split() if version.startswith(("torch", "fbgemm", "numpy"))]
VERSIONS = " ".join([f"python=={sys.version_info[0]}.{sys.version_info[1]}", *_PACKAGES])


class Launches(TorchDispatchMode):
    """Counts the operators whose results share no storage with an argument, or that write in place; and their bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        results = func(*args, **(kwargs or {}))
        in_place = func._schema.is_mutable
        tensors = [x for x in tree_leaves(results) if isinstance(x, torch.Tensor)]
        written = [x for x in tensors if in_place or x.untyped_storage().data_ptr() not in given]
        self.count += bool(written or in_place)
        self.bytes += sum(x.nbytes for x in written)
        return results


def allocations(function: Callable[[], object]) -> tuple[int, int]:
    """Number of blocks taken from PyTorch's allocator, and their bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        function()
    events = found.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0]
    return len(sizes), sum(sizes)


def python_instructions(function: Callable[[], object]) -> int:
    """Number of bytecodes that this thread executes."""
    count = 0

    def trace(frame: Any, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    gc.disable()  # it would run at any time
    sys.settrace(trace)
    function()
    sys.settrace(None)
    gc.enable()
    return count


def count(system: str, attention: str) -> dict[str, int]:
    """Counts a step by `EQUAL` and `WITHIN`, each in a step of its own after `WARM_UP`."""
    torch.set_num_threads(1)
    with patch.dict(os.environ, ATTENTION[attention]), process_group(CPU):
        run = case.begin(system, SIZE, CPU)
        for _ in range(WARM_UP):
            run.take_step()
        with FlopCounterMode(display=False) as flops:
            run.take_step()
        with Launches() as launches:
            run.take_step()
        blocks, instructions = allocations(run.take_step), python_instructions(run.take_step)
    parameters = sum(p.numel() for p in run.model.parameters())
    counted = (parameters, flops.get_total_flops(), launches.count, launches.bytes, *blocks, instructions)
    return dict(zip((*EQUAL, *WITHIN), counted, strict=True))


def moved(found: Mapping[str, int], recorded: Mapping[str, str]) -> list[str]:
    """A line for each count that is not as recorded."""
    pairs = ((name, int(recorded[name]), now) for name, now in found.items())
    return [f"{name} {was:,} -> {now:,}" for name, was, now in pairs if abs(now - was) > (name in WITHIN) * 0.05 * was]


@pytest.mark.parametrize("step", STEPS, ids=", ".join)
def test_a_step_does_what_it_did(step, tmp_path, monkeypatch):
    if RECORDED[step]["versions"] != VERSIONS:
        pytest.skip(f"recorded with {RECORDED[step]['versions']}; this is {VERSIONS}")
    if not library.load():
        pytest.skip("the C++ kernels are not built, by which tables are updated")
    monkeypatch.setattr(case, "DATA", tmp_path)
    assert moved(count(*step), RECORDED[step]) == []


@pytest.mark.parametrize("name", [*EQUAL, *WITHIN])
def test_a_count_that_moves_is_told(name):
    recorded, allowed = {name: "1000"}, 50 if name in WITHIN else 0
    assert moved({name: 1000 + allowed}, recorded) == moved({name: 1000 - allowed}, recorded) == []
    assert moved({name: 1001 + allowed}, recorded) == [f"{name} 1,000 -> {1001 + allowed:,}"]
    assert moved({name: 999 - allowed}, recorded) == [f"{name} 1,000 -> {999 - allowed:,}"]


def test_counts_are_those_by_hand():
    x, layer = torch.zeros(6, 4), nn.Linear(4, 2, bias=False)
    with Launches() as found:
        y = x + 1  # 24 floats
        y.view(4, 6).t()  # none: the same storage
        y.mul_(2)  # 24 floats, in place
        loss = layer(x).sum()  # 12 floats, 1 float
    assert (found.count, found.bytes) == (4, (24 + 24 + 12 + 1) * 4)
    with Launches() as backward:
        loss.backward()
    assert backward.count >= 2
    assert backward.bytes >= layer.weight.nbytes
    number, size = allocations(lambda: [torch.empty(100) for _ in range(7)])
    assert number == 7
    assert 7 * 400 <= size < 7 * 512
    none, ten, again, more = (python_instructions(lambda n=n: [None for _ in range(n)]) for n in (0, 10, 10, 30))
    assert ten == again
    assert more - ten == 2 * (ten - none) > 0


def record() -> None:
    """Writes what the code does now as what it must do."""
    rows = [{"system": s, "attention": a, **count(s, a), "versions": VERSIONS} for s, a in STEPS]
    with VALUES.open("w", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    record()
