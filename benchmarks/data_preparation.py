"""How fast are raw Ali-CCP files prepared? ``python -m benchmarks.data_preparation``.

Generated files in the exact format; `prepare_ali_ccp`, all cores, against `benchmarks.ali_ccp_baseline`, a plain Python
reading of the AITM authors' published steps, in turns on the same files. Both must find the same rows and vocabularies.
Protocol "full" has no counterpart there; its figures stand alone. Peak memory is that of a process of its own.
Rows go to ``benchmarks/results/data_preparation.csv``, ratios to the screen. About five minutes.
"""

import argparse
import csv
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks import ali_ccp_baseline
from torchrec_mtl.data.ali_ccp import AliCcpGenerator, prepare_ali_ccp

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "data_preparation.csv"


def baseline(raw: Path, folder: Path) -> tuple[int, dict[str, int]]:
    return ali_ccp_baseline.prepare(raw, folder)


def aitm(raw: Path, folder: Path) -> tuple[int, dict[str, int]]:
    return _ours(raw, folder, "aitm")


def full(raw: Path, folder: Path) -> tuple[int, dict[str, int]]:
    return _ours(raw, folder, "full")


def _ours(raw: Path, folder: Path, protocol: str) -> tuple[int, dict[str, int]]:
    """Number of rows, and of values of each field with that of 0."""
    report = json.loads((prepare_ali_ccp(raw, folder / "out", protocol) / "report.json").read_text())
    return sum(report["num_rows"].values()), report["num_embeddings"]


def measure(function: Callable[[Path, Path], Any], raw: Path) -> tuple[Any, float, float, float]:
    """In a fresh process: what it returns, seconds, CPU seconds and peak MB."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (function, raw))


def _measured(function: Callable[[Path, Path], Any], raw: Path) -> tuple[Any, float, float, float]:
    with tempfile.TemporaryDirectory() as folder:
        start, cpu = time.perf_counter(), time.process_time()
        found = function(raw, Path(folder))
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    return found, seconds, cpu_seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def environment() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "versions": f"python=={platform.python_version()} polars=={pl.__version__} numpy=={np.__version__}",
        "processor": models[0].partition(": ")[2] if models else platform.machine(),
        "threads": os.cpu_count(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="of train; test has half as many (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    programs = (baseline, aitm, full)
    runs: dict[str, list[tuple[float, float, float]]] = {program.__name__: [] for program in programs}
    loads = []
    with tempfile.TemporaryDirectory() as folder:
        raw = AliCcpGenerator({"train": args.rows, "test": args.rows // 2}).write(folder)
        size = sum(file.stat().st_size for file in raw.glob("*.csv")) / 1e6
        for _ in range(args.repeats):
            found = {}
            for program in programs:
                loads.append(os.getloadavg()[0])
                found[program.__name__], *figures = measure(program, raw)
                runs[program.__name__].append(tuple(figures))
            assert found["baseline"] == found["aitm"], "the two must find the same rows and vocabularies"
    num_rows = found["baseline"][0]
    write(runs, num_rows, size, loads, args.repeats)
    for i, what in enumerate(("seconds", "CPU seconds")):
        ratios = [base[i] / ours[i] for base, ours in zip(runs["baseline"], runs["aitm"], strict=True)]
        print(f"aitm against baseline, {what}: {statistics.median(ratios):.1f} times as fast ({len(ratios)} repeats)")


def write(
    runs: dict[str, list[tuple[float, float, float]]], num_rows: int, size: float, loads: list[float], repeats: int
) -> None:
    """A CSV row for each program, rows per second being those of all splits."""
    rows = []
    for program, figures in runs.items():
        rates = [num_rows / seconds for seconds, _, _ in figures]
        p20, median, p80 = np.percentile(rates, [20, 50, 80]).round()
        rows.append(
            {
                "program": program,
                "rows": num_rows,
                "megabytes": round(size),
                "rows_per_second": median,
                "p20": p20,
                "p80": p80,
                "cpu_microseconds_per_row": round(statistics.median(cpu for _, cpu, _ in figures) / num_rows * 1e6, 2),
                "peak_megabytes": round(max(peak for *_, peak in figures)),
                "repeats": repeats,
                "load": round(statistics.mean(loads), 1),
                **environment(),
            }
        )
        print(f"{program:10} {median:10,.0f} rows/s  p20 {p20:,.0f}  p80 {p80:,.0f}")
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
