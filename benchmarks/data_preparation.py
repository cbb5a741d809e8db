"""How fast are raw Ali-CCP files prepared, and in how much memory? ``python -m benchmarks.data_preparation``.

Generated files in the exact format; `prepare_ali_ccp`, all cores, against `benchmarks.ali_ccp_baseline`, a plain Python
reading of the AITM authors' published steps, in turns on the same files, each run in a process of its own. Both must
find the same rows and vocabularies. Protocol "full" has no counterpart there; its figures stand alone.

``--rows 100000 400000`` does all of it for each size, so that the CSV tells what memory grows with; ``--group-rows 1``
gives each row common features of its own. About five minutes for the default size on two cores.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import ali_ccp_baseline, memory, record
from torchrec_mtl.data.ali_ccp import AliCcpGenerator, prepare_ali_ccp

ROWS, QUICK_ROWS, REPEATS = 400_000, 3_000, 3
Found = tuple[int, dict[str, int]]  # rows, and ids of each field with that of 0
Run = tuple[Found, float, float, float]  # what was found, seconds, CPU seconds, peak MiB


def baseline(raw: Path, folder: Path) -> Found:
    return ali_ccp_baseline.prepare(raw, folder)


def aitm(raw: Path, folder: Path) -> Found:
    return _ours(raw, folder, "aitm")


def full(raw: Path, folder: Path) -> Found:
    return _ours(raw, folder, "full")


def _ours(raw: Path, folder: Path, protocol: str) -> Found:
    report = json.loads((prepare_ali_ccp(raw, folder / "out", protocol) / "report.json").read_text())
    return sum(report["num_rows"].values()), report["num_embeddings"]


PROGRAMS = (baseline, aitm, full)


def timed(program: Callable[[Path, Path], Found], raw: Path) -> tuple[Found, float, float]:
    """What it finds, seconds and CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        began, cpu = time.perf_counter(), time.process_time()
        found = program(raw, Path(folder))
        return found, time.perf_counter() - began, time.process_time() - cpu


def run(program: Callable[[Path, Path], Found], raw: Path) -> Run:
    """`timed` in a process of its own, and its peak memory."""
    (found, seconds, cpu_seconds), peak = memory.in_own_process(timed, program, raw)
    return found, seconds, cpu_seconds, peak


def check(found: dict[str, Found]) -> None:
    """Stops unless the two have found the same."""
    if found["baseline"] != found["aitm"]:
        sys.exit(f"error: they differ, so nothing is timed: {found['baseline']} and {found['aitm']}")


def measure(raw: Path, repeats: int, about: record.Row) -> list[record.Row]:
    """Rows of results for the files in ``raw``; the programs take turns."""
    runs: dict[str, list[Run]] = {program.__name__: [] for program in PROGRAMS}
    for _ in range(repeats):
        for program in PROGRAMS:
            runs[program.__name__].append(run(program, raw))
        check({name: of_program[-1][0] for name, of_program in runs.items()})
    megabytes = round(sum(file.stat().st_size for file in raw.glob("*.csv")) / 1e6)
    return [
        row
        for name, of_program in runs.items()
        for row in rows_of(name, of_program, runs["baseline"], {**about, "raw_megabytes": megabytes})
    ]


def rows_of(name: str, runs: list[Run], base: list[Run], about: record.Row) -> list[record.Row]:
    """One row a figure: of time also how many times as fast as the baseline in the same round."""
    num_rows = runs[0][0][0]
    about = {"program": name, "rows": num_rows, **about}
    seconds, cpu_seconds, peaks = ([of_run[i] for of_run in runs] for i in (1, 2, 3))
    found = [
        {**about, "figure": "speed", **record.spread([num_rows / taken for taken in seconds], "rows/s", 0)},
        {**about, "figure": "CPU time", **record.spread([1e6 * x / num_rows for x in cpu_seconds], "us/row")},
        {**about, "figure": "peak memory", **record.spread(peaks, "MiB", 0)},
    ]
    if name == "aitm":
        for row, i in zip(found, (1, 2), strict=False):
            row["times_baseline"] = round(record.ratio([of_run[i] for of_run in base], [x[i] for x in runs]), 2)
    return found


def main() -> None:
    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--rows", type=int, nargs="+", help=f"of train; test has half as many ({ROWS})")
        parser.add_argument("--group-rows", type=int, default=58, help="with the same common features (%(default)s)")

    arguments = record.parse("data_preparation", __doc__, options)
    circumstances = record.begin(threads=os.cpu_count() or 1)
    repeats = arguments.repeats or (1 if arguments.quick else REPEATS)
    rows: list[record.Row] = []
    for num_rows in arguments.rows or [QUICK_ROWS if arguments.quick else ROWS]:
        with tempfile.TemporaryDirectory() as folder:
            sizes = {"train": num_rows, "test": num_rows // 2}
            raw = AliCcpGenerator(sizes, rows_per_group=arguments.group_rows).write(folder)
            rows += measure(raw, repeats, {"rows_per_group": arguments.group_rows})
    record.write(arguments.results, rows, circumstances)
    for row in rows:
        times = f"  {row['times_baseline']} times the baseline" if "times_baseline" in row else ""
        figure = f"{row['median']:12,.2f} {row['unit']}"
        print(f"{row['program']:10}{row['rows']:>12,} rows  {row['figure']:12}{figure}{times}")


if __name__ == "__main__":
    main()
