"""What a fixed training step does, in counts that no clock disturbs: ``python -m benchmarks.counts``.

One step of every system, with all that the loop does for one: the same rows, sizes and weights each time. Counted are

- parameters, and the FLOPs of matrix products, forward and backward;
- launches: operators that write memory, of PyTorch, fbgemm and ours (on a GPU most are a kernel each), and the bytes
  that they write;
- allocations: blocks taken from PyTorch's allocator, and their bytes;
- Python instructions: bytecodes that the interpreter executes.

(That over arches compile without a graph break is held by ``tests/models``.)

``benchmarks/results/counts.csv`` has what was last accepted. ``--hold`` counts again and ends with status 1 where one
of `EQUAL` is another or one of `WITHIN` has moved by more than 5 %, so that a slow-down is seen before a user sees it.
What is wanted is accepted by a run without ``--hold``. Counts made with other versions are told, not held.
"""

import csv
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import record
from benchmarks.training_step.case import SYSTEMS, Case, Size
from torchrec_mtl.ops.small_attention import library
from torchrec_mtl.training.distributed import process_group

CPU = torch.device("cpu")
SIZE = Size(batch_size=256, num_fields=8, fewest_rows=1000, most_rows=1000)
WARM_UP = 3
ATTENTION = {
    "PyTorch": {"TORCHREC_MTL_ATTENTION": "reference", "TORCHREC_MTL_INDUCING_ATTENTION": "compact"},
    "C++": {"TORCHREC_MTL_ATTENTION": "cpp", "TORCHREC_MTL_INDUCING_ATTENTION": "cpp"},
}
WITH_KERNELS = ("bpcm", "tafe")
EQUAL = ("parameters", "flops", "launches")
WITHIN = ("bytes_written", "allocations", "bytes_allocated", "python_instructions")
TOLERANCE = 0.05


class Launches(TorchDispatchMode):
    """Counts operators that write memory, and the bytes: results that share no storage with an argument, and those
    that are written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        results = func(*args, **(kwargs or {}))
        in_place = func._schema.is_mutable
        written = [
            x
            for x in tree_leaves(results)
            if isinstance(x, torch.Tensor) and (in_place or x.untyped_storage().data_ptr() not in given)
        ]
        self.count += bool(written or in_place)
        self.bytes += sum(x.nbytes for x in written)
        return results


def python_instructions(function: Callable[[], object]) -> int:
    """Bytecodes that the interpreter executes in this thread."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    gc.disable()  # what it runs when is not the step's
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(None)
        gc.enable()
    return count


def allocations(function: Callable[[], object]) -> tuple[int, int]:
    """Blocks taken from PyTorch's allocator, and their bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        function()
    events = found.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0]
    return len(sizes), sum(sizes)


@contextmanager
def begun(system: str) -> Iterator[Case]:
    """A run of ``system`` after `WARM_UP` steps."""
    case = Case(system, SIZE, CPU)
    for _ in range(WARM_UP):
        case.take_step()
    yield case
    case.close()


def count(system: str) -> record.Row:
    """Of one step; every kind of count has a step of its own."""
    with begun(system) as case:
        with FlopCounterMode(display=False) as flops:
            case.take_step()
        with Launches() as launches:
            case.take_step()
        blocks, num_bytes = allocations(case.take_step)
        return {
            "parameters": sum(p.numel() for p in case.training.model.parameters()),
            "flops": flops.get_total_flops(),
            "launches": launches.count,
            "bytes_written": launches.bytes,
            "allocations": blocks,
            "bytes_allocated": num_bytes,
            "python_instructions": python_instructions(case.take_step),
        }


def count_all() -> list[record.Row]:
    """A row for each system, with attention in PyTorch; another with the C++ kernels, where they have been built."""
    rows = []
    with process_group(CPU):
        for attention, variables in ATTENTION.items():
            os.environ.update(variables)
            for system in SYSTEMS if attention == "PyTorch" else WITH_KERNELS * bool(library.load()):
                rows.append({"system": system, "attention": attention, **count(system)})
                print(" ".join(f"{name}={value}" for name, value in rows[-1].items()), flush=True)
    return rows


def read_accepted(program: str) -> list[dict[str, str]]:
    """What was last accepted of a program that counts."""
    file = record.RESULTS / f"{program}.csv"
    if not file.is_file():
        sys.exit(f"error: {file}: nothing has been accepted yet, which `python -m benchmarks.{program}` does")
    with file.open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def differences(
    rows: list[record.Row],
    accepted: list[dict[str, str]],
    equal: tuple[str, ...] = EQUAL,
    within: tuple[str, ...] = WITHIN,
) -> list[str]:
    """A sentence for every count of ``rows`` that is not what was accepted."""
    known = {(row["system"], row["attention"]): row for row in accepted}
    found = []
    for row in rows:
        key = (row["system"], row["attention"])
        if key not in known:
            found.append(f"{', '.join(key)}: is not among the accepted counts")
            continue
        for name in (*equal, *within):
            was, now = round(float(known[key][name])), round(row[name])
            if abs(now - was) > (TOLERANCE * was if name in within else 0):
                found.append(f"{', '.join(key)}: {name} {was:,} -> {now:,} ({now / was - 1:+.1%})")
    return found


def main() -> None:
    arguments = record.parse("counts", __doc__, lambda parser: parser.add_argument("--hold", action="store_true"))
    circumstances = record.begin()
    if not arguments.hold:
        record.write(arguments.results, count_all(), circumstances)
        return
    accepted = read_accepted("counts")
    moved = differences(count_all(), accepted)
    print("\n".join(moved) or "all counts are as accepted")
    if accepted[0]["versions"] != circumstances["versions"]:
        print(f"not held: they were counted with {accepted[0]['versions']}, this is {circumstances['versions']}")
    elif moved:
        sys.exit("error: a fixed step costs something else; where that is wanted: python -m benchmarks.counts")


if __name__ == "__main__":
    main()
