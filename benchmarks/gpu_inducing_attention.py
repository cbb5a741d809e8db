"""TAFE's stack on a GPU: checks the Triton kernels, then times them against PyTorch's paths. Not yet run on a GPU.

One call of a few minutes does all of it: builds (the first call of each kernel), runs `tests/gpu` and the operation's
other tests, `compute-sanitizer` where it is installed, and writes medians::

    python -m benchmarks.gpu_inducing_attention            # to benchmarks/results/gpu_inducing_attention.csv
    python -m benchmarks.gpu_inducing_attention --quick    # tiny, on a CPU, the kernels interpreted: tries this program

A time is that of one step of the stack, from fields and selection to the adapted representations, and where it says so
of the gradients of everything.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import record
from benchmarks.gpu_timing import graphed, rates

REPEATS = 20
CALLS = {"cuda": 5, "cpu": 1}  # timed together: one on a GPU is as short as the clock's step
ACTIVE = (0.1, 0.25, 0.5, 0.6, 1.0)
DIRECTIONS = ("forward", "forward and backward")


class Size(NamedTuple):
    """Samples, fields, points, embedding dimension, heads, layers, tasks, and the type of the numbers."""

    B: int
    F: int
    K: int
    D: int
    m: int
    L: int
    T: int
    dtype: torch.dtype


SIZES = {
    "paper": Size(1024, 20, 64, 18, 2, 4, 2, torch.float32),
    "mid": Size(16384, 26, 64, 32, 2, 4, 2, torch.bfloat16),
    "large": Size(32768, 128, 64, 64, 4, 4, 4, torch.bfloat16),
}
QUICK = {"tiny": Size(3, 4, 8, 8, 1, 2, 1, torch.float32)}


def draw(size: Size, active: float, device: str) -> list[Tensor]:
    """Inputs, a selection with that share of points not at 0 (a third of them between 0 and 1), weights."""
    torch.manual_seed(0)
    B, F, K, D, _, L, T, dtype = size  # noqa: N806
    chosen = torch.rand(B, K) < active
    z = torch.where(torch.rand(B, K) < 1 / 3, torch.rand(B, K), torch.ones(B, K)) * chosen

    def weights(*lead: int, rows: int) -> list[Tensor]:
        square = [torch.randn(*lead, D, D) / D**0.5 for _ in range(3)]
        return [torch.randn(*lead[:1], rows, D), *square, torch.ones(*lead, D), torch.zeros(*lead, D)]

    tensors = [torch.randn(B, F, D), z, *weights(L, rows=K), *weights(L, T, rows=T)]
    kinds = [dtype, torch.float32] + [dtype] * 12
    return [x.to(device, kind).requires_grad_() for x, kind in zip(tensors, kinds, strict=True)]


def candidates(heads: int, quick: bool) -> dict[str, Callable[..., Tensor]]:
    """Functions of `draw`'s tensors."""
    from torchrec_mtl.ops import AdapterWeights, GeneratorWeights, InducingStack
    from torchrec_mtl.ops.inducing_attention import reference, sdpa, triton_backend

    def of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(inputs: Tensor, z: Tensor, *weights: Tensor) -> Tensor:
            own = InducingStack(GeneratorWeights(*weights[:6]), AdapterWeights(*weights[6:]), heads)
            return function(inputs, z.to(inputs.dtype), own)

        return run

    eager = of(reference.inducing_stack)
    how = {"backend": "aot_eager"} if quick else {}
    found = {"eager": eager, "compile": torch.compile(of(reference.inducing_stack), **how)}
    if not quick:
        found["compile, reduce-overhead"] = torch.compile(of(reference.inducing_stack), mode="reduce-overhead")
    return found | {"sdpa": of(sdpa.inducing_stack), "triton": of(triton_backend.inducing_stack)}


def step(function: Callable[..., Tensor], tensors: list[Tensor], direction: str) -> Callable[[], object]:
    if direction == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return function(*tensors)

        return forward

    def both() -> tuple[Tensor, ...]:
        output = function(*tensors)
        return torch.autograd.grad(output, tensors, torch.ones_like(output))

    return both


def floor(size: Size, active: float, direction: str, rate: tuple[float, float]) -> float:
    """Microseconds that the folded, compacted stack takes at those rates: of bytes or of FLOP, whichever is more."""
    B, F, K, D, m, L, T, dtype = size  # noqa: N806
    rows = min(K, active * K + 1)
    attention, square = 2 * m * rows * D * (F + (L - 1) * rows), 2 * L * m * rows * D * D
    adapter, own = 2 * L * T * m * rows * D, 2 * L * T * m * D * D
    steps = (2, 1, 2, 1) if direction == "forward" else (8, 3, 7, 3)
    flop = B * sum(n * x for n, x in zip(steps, (attention, square, adapter, own), strict=True))
    moved = B * ((F + T) * D * dtype.itemsize + 4 * K) * (1 if direction == "forward" else 3)
    return 1e6 * max(moved / rate[0], flop / rate[1])


def measure(sizes: dict[str, Size], device: str, repeats: int) -> list[record.Row]:
    rows: list[record.Row] = []
    for name, size in sizes.items():
        functions = candidates(size.m, device == "cpu")
        rate = rates(size.dtype, device)
        for active in ACTIVE if device == "cuda" else ACTIVE[1:2]:
            tensors = draw(size, active, device)
            for direction in DIRECTIONS:
                runs = {(c, "plain"): step(function, tensors, direction) for c, function in functions.items()}
                for run in runs.values():
                    run()  # compiles
                if device == "cuda":
                    plain = [c for c in functions if "reduce" not in c]  # that one is a graph already
                    runs |= {(c, "graph"): graphed(runs[c, "plain"]) for c in plain}
                timer = partial(record.seconds, device=device, calls=CALLS[device])
                times = record.in_turns(runs, repeats, timer, warm_up=0)
                least = floor(size, active, direction, rate)
                for (candidate, mode), own in times.items():
                    row = {"size": name, **size._asdict(), "active": active, "direction": direction}
                    row |= {"candidate": candidate, "mode": mode}
                    row["times_eager"] = round(record.ratio(times["eager", "plain"], own), 3)
                    row |= record.spread([1e6 * x for x in own], "us", 2)
                    rows.append(row | {"percent_of_roofline": round(100 * least / row["median"], 2)})
                    print({k: row[k] for k in ("size", "active", "direction", "candidate", "mode", "median")})
                del runs
    return rows


def check(quick: bool) -> None:
    """Stops at the first failure: no time is reported of kernels that are wrong."""
    tests = ["tests/gpu", "tests/ops/test_inducing_triton.py", "tests/ops/test_inducing_triton_operator.py"]
    chosen = ["-k", "same_bits or without_gradients"] if quick else []
    subprocess.run([sys.executable, "-m", "pytest", "-q", *tests, *chosen], cwd=record.ROOT, check=True)
    if quick or shutil.which("compute-sanitizer") is None:
        print("compute-sanitizer: not run")
        return
    case = ["-m", "pytest", "-q", "tests/ops/test_inducing_triton.py", "-k", "every_residual or one_layer"]
    for tool in ("memcheck", "racecheck"):
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", sys.executable, *case]
        subprocess.run(command, cwd=record.ROOT, check=True)


def main() -> None:
    arguments = record.parse("gpu_inducing_attention", __doc__)
    if not arguments.quick and not torch.cuda.is_available():
        sys.exit("error: there is no GPU here; `--quick` tries the program without one")
    if arguments.quick:
        os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported
    device = "cpu" if arguments.quick else "cuda"
    circumstances = record.begin(device=device)
    check(arguments.quick)
    repeats = arguments.repeats or (1 if arguments.quick else REPEATS)
    record.write(arguments.results, measure(QUICK if arguments.quick else SIZES, device, repeats), circumstances)


if __name__ == "__main__":
    main()
