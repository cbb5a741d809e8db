"""Timing on a GPU: single steps, CUDA graphs, what the device reaches, and where a figure comes from."""

import datetime
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib import metadata

import torch


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


def microseconds(run: Callable[[], object], device: str, calls: int = 5) -> float:
    """Of one call; on a GPU the mean of several in a row."""
    if device == "cpu":
        start = time.perf_counter()
        run()
        return 1e6 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return 1e3 * begin.elapsed_time(end) / calls


def in_turns(
    runs: dict[tuple[str, str], Callable[[], object]], device: str, repeats: int
) -> dict[tuple[str, str], list[float]]:
    """Every run's times, sorted; all are timed in each round, so that a change of clocks meets them all."""
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in range(repeats):
        for key, run in runs.items():
            times[key].append(microseconds(run, device))
    return {key: sorted(found) for key, found in times.items()}


def rates(dtype: torch.dtype, device: str) -> tuple[float, float]:
    """What this device reaches: bytes a second of a copy, FLOP a second of a large product."""
    side, big = (8192, 1 << 28) if device == "cuda" else (256, 1 << 16)
    a, x = torch.randn(side, side, device=device, dtype=dtype), torch.randn(big, device=device)
    y = torch.empty_like(x)
    copy = min(microseconds(lambda: y.copy_(x), device) for _ in range(5))
    product = min(microseconds(lambda: a @ a, device) for _ in range(5))
    return 2 * x.nbytes / copy * 1e6, 2 * side**3 / product * 1e6


def summary(times: list[float], base: float, least: float) -> dict[str, object]:
    """Of sorted times: how often ``base`` holds the median, and what ``least`` is of it."""
    median = statistics.median(times)
    return {
        "repeats": len(times),
        "median_us": round(median, 2),
        "p20_us": round(times[len(times) // 5], 2),
        "p80_us": round(times[-1 - len(times) // 5], 2),
        "times_eager": round(base / median, 3),
        "percent_of_roofline": round(100 * least / median, 2),
    }


def provenance(device: str) -> dict[str, object]:
    """Where and when."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return {
        "date": datetime.date.today().isoformat(),
        "commit": subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip(),
        "versions": f"torch=={torch.__version__} triton=={metadata.version('triton')} cuda=={torch.version.cuda}",
        "processor": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
    }
