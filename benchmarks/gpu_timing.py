"""Of a GPU: a step as a CUDA graph, and what the device reaches."""

from collections.abc import Callable

import torch

from benchmarks.record import seconds


def graphed(run: Callable[[], object]) -> Callable[[], object]:
    """The step as a CUDA graph's replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def rates(dtype: torch.dtype, device: str) -> tuple[float, float]:
    """What this device reaches: bytes a second of a copy, FLOP a second of a large product."""
    side, big = (8192, 1 << 28) if device == "cuda" else (256, 1 << 16)
    a, x = torch.randn(side, side, device=device, dtype=dtype), torch.randn(big, device=device)
    y = torch.empty_like(x)
    copy = min(seconds(lambda: y.copy_(x), device) for _ in range(5))
    product = min(seconds(lambda: a @ a, device) for _ in range(5))
    return 2 * x.nbytes / copy, 2 * side**3 / product
