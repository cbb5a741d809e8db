"""Measures how fast, and in how much memory, raw Ali-CCP files are prepared: ``python -m benchmarks.data_preparation``.

The files are generated in the exact format. `prepare_ali_ccp`, on all cores, takes turns with
`benchmarks.ali_ccp_baseline`, the AITM authors' published steps in plain Python; each run has a process of its own.
Both must find the same rows and vocabularies. Protocol "full" has no counterpart in the baseline.

``--rows 100000 400000`` shows what memory grows with, ``--group-rows 1`` gives each row common features of its own.
The default size takes about five minutes on two cores.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import ali_ccp_baseline, record
from tests.generators.ali_ccp import AliCcpGenerator
from torchrec_mtl.datasets.ali_ccp.prepare import prepare_ali_ccp

ROWS, QUICK_ROWS, REPEATS = 400_000, 3_000, 3
Found = tuple[int, dict[str, int]]  # number of rows, and number of ids of each field, with 0
Run = tuple[Found, float, float, float]  # what was found, seconds, CPU seconds, peak MiB


def ours(protocol: str, raw: Path, folder: Path) -> Found:
    report = json.loads((prepare_ali_ccp(raw, folder / "out", protocol) / "report.json").read_text())
    return sum(report["num_rows"].values()), report["num_embeddings"]


PROGRAMS = {"baseline": ali_ccp_baseline.prepare, "aitm": partial(ours, "aitm"), "full": partial(ours, "full")}


def timed(program: Callable[[Path, Path], Found], raw: Path) -> tuple[Found, float, float]:
    """Returns what ``program`` finds, seconds and CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        began, cpu = time.perf_counter(), time.process_time()
        found = program(raw, Path(folder))
        return found, time.perf_counter() - began, time.process_time() - cpu


def measure(raw: Path, repeats: int) -> dict[str, list[Run]]:
    """Returns the runs of each program, which take turns; stops if ours does not find what the baseline finds."""
    runs: dict[str, list[Run]] = {name: [] for name in PROGRAMS}
    for _ in range(repeats):
        for name, program in PROGRAMS.items():
            times, peak = record.in_own_process(timed, program, raw)
            runs[name].append((*times, peak))
        if (theirs := runs["baseline"][-1][0]) != (found := runs["aitm"][-1][0]):
            sys.exit(f"error: they differ, so nothing is timed: {theirs} and {found}")
    return runs


def rows_of(name: str, runs: list[Run], base: list[Run], about: record.Row) -> list[record.Row]:
    """Returns a row for each figure; ours also says how many times as fast as the baseline in the same round."""
    num_rows = runs[0][0][0]
    _, seconds, cpu_seconds, peaks = zip(*runs, strict=True)
    rows = [
        {"figure": "speed", **record.spread([num_rows / taken for taken in seconds], "rows/s", 0)},
        {"figure": "CPU time", **record.spread([1e6 * taken / num_rows for taken in cpu_seconds], "us/row")},
        {"figure": "peak memory", **record.spread(peaks, "MiB", 0)},
    ]
    if name == "aitm":
        for row, i in zip(rows, (1, 2), strict=False):
            row["times_baseline"] = round(record.ratio([each[i] for each in base], [each[i] for each in runs]), 2)
    return [{"program": name, "rows": num_rows, **about, **row} for row in rows]


def main() -> None:
    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--rows", type=int, nargs="+", help=f"rows of train; test has half as many ({ROWS})")
        parser.add_argument("--group-rows", type=int, default=58, help="rows that share common features (%(default)s)")

    arguments = record.parse("data_preparation", __doc__, options)
    with record.Results(arguments.results, threads=os.cpu_count() or 1) as results:
        for num_rows in arguments.rows or [QUICK_ROWS if arguments.quick else ROWS]:
            with tempfile.TemporaryDirectory() as folder:
                sizes = {"train": num_rows, "test": num_rows // 2}
                raw = AliCcpGenerator(sizes, rows_per_group=arguments.group_rows).write(folder)
                megabytes = round(sum(file.stat().st_size for file in raw.glob("*.csv")) / 1e6)
                runs = measure(raw, arguments.repeats or (1 if arguments.quick else REPEATS))
            about = {"rows_per_group": arguments.group_rows, "raw_megabytes": megabytes}
            for name in PROGRAMS:
                results.add(*rows_of(name, runs[name], runs["baseline"], about))


if __name__ == "__main__":
    main()
