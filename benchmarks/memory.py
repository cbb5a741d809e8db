"""A process's peak memory; what is imported here is in every figure, so it is next to nothing."""

from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any


def in_own_process(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What ``function`` returns in a new process, and that process's peak memory in MiB."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_with_peak, (function, *arguments))


def _with_peak(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    return function(*arguments), peak_memory()


def peak_memory() -> float:
    """MiB, of this process so far. (What `getrusage` says is never below what the parent had when it started this.)"""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
