"""TAFE's stack: the kernels beside what PyTorch has. Needs torch and Triton alone.

Each path's output and gradients are checked against the definition in float64 before they are timed; one that is wrong
or fails has a row with its ``error``. Microseconds of a step as it is ("plain") and as a CUDA graph; ``attention`` is
which of its own PyTorch took in `scaled_dot_product_attention`, ``first_seconds`` what the first call took, which may
have compiled. The paths that are sure to run come first: after an illegal access of memory none does.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

from benchmarks import record
from benchmarks.attention import BOTH, SIZES, Size, check, draw, expect, stack, step
from benchmarks.gpu.device import attention_of, graphed, roofline
from benchmarks.record import Row, in_one_line
from torchrec_mtl.ops.inducing_attention import cuda

PATHS = {"eager": "reference", "sdpa": "sdpa", "compact": "compact", "triton": "triton", "cuda": "cuda"}
MODES = ("plain", "graph")
COMPILED = {"compile": {}, "compile, reduce-overhead": {"mode": "reduce-overhead"}}
PRETENDED = Size(2, 2, 4, 4, 1, 1, 1, torch.float32)  # on a CPU
DIRECTIONS = (BOTH, "forward")
WARM_UP, REPEATS, MOST_SECONDS = 2, 20, 1.5  # of one candidate

Function = Callable[..., Tensor]


def compiled(function: Function, **options: object) -> Function:
    """Compiled for the sizes it meets, as a fair baseline is: not for sizes in general since the second one."""
    torch._dynamo.reset()
    whole: Function = torch.compile(function, dynamic=False, **options)
    return whole


def timed(run: Callable[[], object], device: str, calls: int) -> list[float]:
    """Seconds of a call in each of `REPEATS` rounds, or of fewer if they take long."""
    times: list[float] = []
    for turn in range(WARM_UP + REPEATS if device == "cuda" else 1):
        times.append(record.seconds(run, device, calls))
        if turn > WARM_UP and calls * sum(times) > MOST_SECONDS:
            break
    return times[WARM_UP:] or times


def can_run(path: str, size: Size, device: str) -> bool:
    """Whether the kernels in CUDA C++ are built for a size that they cover; the other paths run at any."""
    sizes = (size.m, size.D, size.K, size.F)
    return path != "cuda" or cuda.why_not_sizes(device, 0, size.dtype, *sizes) is None


def candidates(paths: Sequence[str], modes: Sequence[str], compiles: bool, heads: int, device: str) -> Iterator[tuple]:
    """Name, mode and function of each."""
    if compiles:
        for name, options in COMPILED.items():
            chosen = options if device == "cuda" else {"backend": "eager"}
            yield name, "plain", compiled(stack("reference", heads), **chosen)
    for mode, path in product(modes, () if compiles else paths):
        if mode == "plain" or (device == "cuda" and path != "compact"):  # which reads the selection on the host
            yield path, mode, stack(PATHS[path], heads)


def rows(size: Size, share: float, device: str, of: Iterator[tuple], calls: int) -> Iterator[Row]:
    """A row for each candidate and direction."""
    tensors = draw(size, share, device)
    expected, base = expect(tensors, size.m), dict[tuple[str, str], float]()
    for candidate, mode, function in of:
        for direction in DIRECTIONS:
            about = {"share": share, "direction": direction, "candidate": candidate, "mode": mode}
            try:
                run, began = step(function, tensors, direction), time.perf_counter()
                run = graphed(run) if mode == "graph" else run
                check(run(), expected)
                about["first_seconds"] = round(time.perf_counter() - began, 2)
                if mode == "plain" and candidate in ("sdpa", "compact"):
                    about["attention"] = attention_of(run)
                times = timed(run, device, calls)
            except Exception as error:
                yield {**about, "error": in_one_line(error)}
                continue
            middle = statistics.median(times)
            if candidate == "eager":
                base[mode, direction] = middle
            for name, of in (("times_eager", "plain"), ("times_eager_graph", "graph")):
                about[name] = round(middle / base[of, direction], 3) if (of, direction) in base else None
            about["percent_of_roofline"] = round(100 * roofline(size, share, direction, device) / middle, 2)
            yield {**about, **record.spread([1e6 * x for x in times], "us", 2)}
            run = None  # frees a graph's memory


def measure(
    add: Callable[[Row], None],
    pretend: bool,
    name: str,
    shares: Sequence[float],
    compiles: bool = False,
    paths: Sequence[str] = tuple(PATHS),
    modes: Sequence[str] = MODES,
) -> None:
    """The stack at a size of `SIZES` and some shares of points selected."""
    size, device, shares = (PRETENDED, "cpu", shares[:1]) if pretend else (SIZES[name], "cuda", shares)
    about = {"what": "stack", "size": name, **size._asdict()}
    paths = [path for path in paths if can_run(path, size, device)]
    calls = 5 if name == "paper" and not pretend else 1  # one is too short there
    for share in shares:
        for row in rows(size, share, device, candidates(paths, modes, compiles, size.m, device), calls):
            add({**about, **row})
