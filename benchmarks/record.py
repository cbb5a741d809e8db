"""How every benchmark times and records: candidates in turns, medians with their spread, and where and when.

A row of results says what it is about in columns of its own; `COLUMNS` end every row. A benchmark checks that its
candidates compute the same before it times them, and records nothing if they do not.

Only torch and parts of this library that need nothing else are imported here: every program and process can use it.
"""

import argparse
import csv
import io
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch

from torchrec_mtl.files import write_whole
from torchrec_mtl.jobs.environment import processor, worker_environment

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
CIRCUMSTANCES = ("seed", "threads", "load", "processor", "versions", "commit", "command", "date")
COLUMNS = ("unit", "median", "p20", "p80", "repeats", *CIRCUMSTANCES)
PEERS = ("torch-rechub", "deepctr-torch", "fuxictr")
PACKAGES = ("torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "triton", "numpy", "polars", *PEERS)

QUICK = ROOT / "build" / "bench-quick"

Row = dict[str, Any]
Name = TypeVar("Name", bound=Hashable)


def parse(
    program: str, description: str | None, *options: Callable[[argparse.ArgumentParser], object]
) -> argparse.Namespace:
    """A benchmark's command line: ``--quick``, ``--repeats``, ``--results``, and what ``options`` add."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small run of seconds that tries the program out")
    parser.add_argument("--repeats", type=int, default=None, help="number of rounds in which candidates take turns")
    parser.add_argument("--results", type=Path, default=None, help=f"CSV file; benchmarks/results/{program}.csv")
    for add in options:
        add(parser)
    arguments = parser.parse_args()
    arguments.results = arguments.results or (QUICK if arguments.quick else RESULTS) / f"{program}.csv"
    return arguments


class Results:
    """A CSV file that grows by a row as soon as it is measured.

    The rows go to ``<file>.partial``, which takes the file's name once the program has come to its end; an interrupted
    one leaves what it measured there, and the results of an earlier run as they were.

    It is to be made before anything else: it sets threads, seed and memory allocator. The program is started once more
    where its allocator gives memory back to the kernel, which the jobs' does not.

    Args:
        file: where the rows go.
        threads: of PyTorch.
        seed: of PyTorch's random numbers.
        device: ``"cpu"`` or ``"cuda"``.

    Attributes:
        rows: those added so far.
    """

    def __init__(self, file: Path, threads: int = 1, seed: int = 0, device: str = "cpu") -> None:
        wanted = worker_environment(threads, processes=1)
        if not wanted.items() <= os.environ.items():  # read when a process starts
            os.execve(sys.executable, sys.orig_argv, {**os.environ, **wanted})
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        self.file, self.rows = file, list[Row]()
        self._partial = file.with_name(f"{file.name}.partial")
        self._circumstances = {
            "seed": seed,
            "threads": threads,
            "processor": torch.cuda.get_device_name() if device == "cuda" else processor(),
            "versions": versions(),
            "commit": commit(),
            "command": command(),
        }

    def add(self, *rows: Row) -> None:
        """Writes ``rows``, with when and where; what a row itself says of that (its versions, say) stays."""
        now = datetime.now(timezone.utc).isoformat(timespec="minutes")
        when = {"load": round(os.getloadavg()[0], 1), "date": now}
        self.rows += [{**self._circumstances, **when, **row} for row in rows]
        self._write()

    def _write(self) -> None:
        about = [name for name in dict.fromkeys(name for row in self.rows for name in row) if name not in COLUMNS]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        text = io.StringIO()
        writer = csv.DictWriter(text, [*about, *COLUMNS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self._partial, text.getvalue())

    def __enter__(self) -> "Results":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.rows:
            self._write()  # what ended the program may have come while a row was written
        if error is None and self.rows:
            os.replace(self._partial, self.file)
            print(f"{len(self.rows)} rows: {self.file}", flush=True)
        elif self.rows:
            print(f"not finished; {len(self.rows)} rows: {self._partial}", flush=True)


def in_one_line(error: Exception) -> str:
    """What a row says of a candidate that failed."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def versions() -> str:
    """Of the packages that figures depend on."""
    found = metadata.distributions()
    installed = {package.metadata["Name"].replace("_", "-").lower(): package.version for package in found}
    return " ".join(f"{name}=={installed[name]}" for name in PACKAGES if name in installed)


def command() -> str:
    """This program's command line, as it can be repeated from the root of a clone."""
    module = sys.modules["__main__"].__spec__
    name = "" if module is None else module.name.removesuffix(".__main__")
    return " ".join(["python", *(["-m", name] if name else []), *sys.argv[1:]])


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
