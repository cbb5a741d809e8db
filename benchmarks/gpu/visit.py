"""Takes the steps that are left, in the time that is left, and keeps every row."""

import csv
import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu.process import ENDED, FAILED, rows_of
from benchmarks.gpu.steps import STEPS, Step
from benchmarks.record import QUICK, RESULTS, Results, Row

FILE = "gpu.csv"
PRINTED = (
    "step",
    "what",
    "axis",
    "B",
    "share",
    "direction",
    "optimizer",
    "candidate",
    "part",
    "mode",
    "median",
    "unit",
)
PRINTED += ("test", "outcome", "error")
ON_A_CPU = 10  # times as long a step may take there


def read(folder: Path) -> list[Row]:
    """The rows of an earlier call, also of one that was killed."""
    for file in (folder / f"{FILE}.partial", folder / FILE):
        if file.is_file():
            with file.open(encoding="utf-8", newline="") as lines:
                return list(csv.DictReader(lines))
    return []


def left(rows: Sequence[Row], steps: Sequence[Step]) -> list[Step]:
    """The steps that did not come to an end; those that were begun come last."""
    ended = {row["step"] for row in rows if row["what"] == ENDED}
    begun = {row["step"] for row in rows}
    return sorted((step for step in steps if step.name not in ended), key=lambda step: step.name in begun)


def missing(step: Step) -> list[str]:
    """The packages that the step needs and this Python does not have."""
    return [package for package in step.needs if importlib.util.find_spec(package) is None]


def main(deadline: float, before: str | None, pretend: bool, steps: Sequence[Step] = STEPS) -> None:
    """Measures until ``deadline``, by the monotonic clock."""
    if not pretend and not torch.cuda.is_available():
        sys.exit("error: there is no GPU here; `--pretend` tries the program without one")
    folder = Path(os.environ.get("OUT") or (QUICK if pretend else RESULTS))
    earlier, method, works = read(Path(before) if before else folder), "forkserver", False
    waiting, failed = list[str](), list[str]()
    with Results(folder / FILE, device="cpu" if pretend else "cuda") as results:

        def keep(row: Row) -> str:
            results.add(row)
            print("gpu:", *(row[name] for name in PRINTED if row.get(name) not in (None, "")), flush=True)
            failed.extend([row["step"]] if row.get("error") else [])
            return row["what"]

        results.add(*earlier)
        for step in left(earlier, steps):
            limit = step.seconds * (ON_A_CPU if pretend else 1)
            if time.monotonic() + limit > deadline:
                waiting.append(step.name)
                continue
            if lacking := missing(step):
                keep({"step": step.name, "what": FAILED, "error": f"not installed: {', '.join(lacking)}"})
                continue
            *_, outcome = [keep(row) for row in rows_of(step, pretend, limit, method)]
            works = works or outcome == ENDED
            method = method if works else "spawn"  # what the processes share may be to blame
    if waiting:
        print(f"gpu: not begun, because it could not have ended in time: {'; '.join(waiting)}", flush=True)
    if failed:
        sys.exit(f"error: {len(failed)} rows have an error: {'; '.join(dict.fromkeys(failed))}")
