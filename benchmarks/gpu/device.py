"""A step as a CUDA graph, what a device reaches, and which attention PyTorch takes."""

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import record
from benchmarks.attention import Size
from benchmarks.roofline.algebra import work


def graphed(run: Callable[[], tuple[Tensor, ...]]) -> Callable[[], tuple[Tensor, ...]]:
    """The replay of ``run`` as a CUDA graph."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()  # compiles
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        results = run()
    return lambda: graph.replay() or results


class _Attention(TorchDispatchMode):
    """Notes which of PyTorch's fused attentions run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found.update(re.findall(r"_scaled_dot_product_(\w+?)(?:_attention)?(?:_for_cpu)?\.", f"{func}."))
        return func(*args, **kwargs or {})


def attention_of(run: Callable[[], object]) -> str:
    """Names of the fused attentions that ``run`` takes, such as "flash"; "math" if it takes none."""
    with _Attention() as mode:
        run()
    return " ".join(sorted(name for name in mode.found if "backward" not in name)) or "math"


@cache
def reached(dtype: torch.dtype, device: str) -> tuple[float, float]:
    """Bytes a second of a copy, and FLOP a second of a large product."""
    side, count = (8192, 1 << 28) if device == "cuda" else (256, 1 << 16)
    a, x = torch.randn(side, side, device=device, dtype=dtype), torch.randn(count, device=device)
    y = torch.empty_like(x)
    copy, product = (min(record.seconds(f, device) for _ in range(5)) for f in (lambda: y.copy_(x), lambda: a @ a))
    return 2 * x.nbytes / copy, 2 * side**3 / product


def roofline(size: Size, active: float, direction: str, device: str) -> float:
    """Seconds that TAFE's stack takes at what is `reached`, for its bytes or for its FLOP."""
    of, (bytes_a_second, flop_a_second) = work(size, active, direction), reached(size.dtype, device)
    return max(of.bytes / bytes_a_second, of.flop / flop_a_second)
