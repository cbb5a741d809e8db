"""How every benchmark times and records: candidates in turns, medians with their spread, and where and when.

A row of results says what it is about in columns of its own; `COLUMNS` end every row. A benchmark checks that its
candidates compute the same before it times them, and writes nothing if they do not.
"""

import argparse
import csv
import io
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch

from torchrec_mtl.files import write_whole
from torchrec_mtl.jobs.environment import worker_environment

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
CIRCUMSTANCES = ("seed", "threads", "load", "processor", "versions", "commit", "date")
COLUMNS = ("unit", "median", "p20", "p80", "repeats", *CIRCUMSTANCES)
PACKAGES = ("torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "triton", "numpy", "polars")

QUICK = ROOT / "build" / "bench-quick"

Row = dict[str, Any]
Name = TypeVar("Name", bound=Hashable)


def parse(
    program: str, description: str | None, *options: Callable[[argparse.ArgumentParser], object]
) -> argparse.Namespace:
    """A benchmark's command line: ``--quick``, ``--repeats``, ``--results``, and what ``options`` add."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small, in seconds: shows that it works, no figures")
    parser.add_argument("--repeats", type=int, default=None, help="how often candidates take turns")
    parser.add_argument("--results", type=Path, default=None, help=f"CSV; {program}.csv of benchmarks/results")
    for add in options:
        add(parser)
    arguments = parser.parse_args()
    arguments.results = arguments.results or (QUICK if arguments.quick else RESULTS) / f"{program}.csv"
    return arguments


def begin(threads: int = 1, seed: int = 0, device: str = "cpu") -> Row:
    """What is to be called first: sets threads, seed and memory allocator; returns what each row says of the run.

    The program is started once more where its allocator gives memory back to the kernel, which the jobs' does not.
    """
    wanted = worker_environment(threads, processes=1)
    if not wanted.items() <= os.environ.items():  # read when a process starts
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **wanted})
    from torchrec_mtl.jobs.compare.runs import processor  # takes seconds; not twice

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    found = metadata.distributions()
    installed = {package.metadata["Name"].replace("_", "-").lower(): package.version for package in found}
    return {
        "seed": seed,
        "threads": threads,
        "load": round(os.getloadavg()[0], 1),
        "processor": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "versions": " ".join(f"{name}=={installed[name]}" for name in PACKAGES if name in installed),
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
    }


def commit() -> str:
    """The checkout's, and whether anything but results was changed since."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        return "not a git checkout"
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ".", ":!benchmarks/results"], check=False)
    return head.stdout.strip() + ("-dirty" if changed.returncode else "")


def seconds(function: Callable[[], object], device: str = "cpu", calls: int = 1) -> float:
    """Wall time of one call; on a GPU between two of its events, so that what the host does ahead is not counted."""
    if device == "cpu":
        began = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - began) / calls
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def processor_seconds(function: Callable[[], object]) -> float:
    """CPU time of one call, all threads together: other work on the machine disturbs it least."""
    began = time.process_time()
    function()
    return time.process_time() - began


def in_turns(
    candidates: Mapping[Name, Callable[[], object]],
    repeats: int,
    timer: Callable[[Callable[[], object]], float] = seconds,
    warm_up: int = 1,
) -> dict[Name, list[float]]:
    """Each candidate's seconds, in the order of rounds: a slow moment of the machine meets them all."""
    times: dict[Name, list[float]] = {name: [] for name in candidates}
    for turn in range(warm_up + repeats):
        for name, function in candidates.items():
            taken = timer(function)
            if turn >= warm_up:
                times[name].append(taken)
    return times


def ratio(own: Sequence[float], base: Sequence[float]) -> float:
    """The median over rounds of ``own`` to ``base`` in the same round."""
    return statistics.median(a / b for a, b in zip(own, base, strict=True))


def spread(values: Sequence[float], unit: str, digits: int = 3) -> Row:
    """Median, p20 and p80, rounded, and of how many."""
    p20, *_, p80 = statistics.quantiles(values, n=5, method="inclusive") if len(values) > 1 else [values[0]] * 4
    figures = {"median": statistics.median(values), "p20": p20, "p80": p80}
    return {"unit": unit, **{name: round(value, digits) for name, value in figures.items()}, "repeats": len(values)}


def write(file: Path, rows: Iterable[Row], circumstances: Row) -> None:
    """Rows as CSV, whole or not at all; `COLUMNS` come last."""
    rows = [{**row, **circumstances} for row in rows]
    about = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in COLUMNS]
    file.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, [*about, *COLUMNS], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(file, text.getvalue())
    print(f"{len(rows)} rows: {file}", flush=True)
