"""Measures how fast, and in how much memory, a declared table is prepared: ``python -m benchmarks.table_preparation``.

The table has 12 fields (6 vocabularies, bins, log-round, two dense numbers, an hour, a history) and a chain of two tasks.
`prepare_table` takes turns with `benchmarks.table_in_pandas`, which fits and encodes the same, all in memory; each run has a
process of its own. Both must find the same rows, numbers of ids, and lengths of histories.

``--rows 3000000 10000000 30000000 --alone 10000000`` shows how memory follows the lengths of histories, not rows; from ``--alone`` rows on,
pandas is left out. The default size takes about five minutes on two cores.
"""  # noqa: E501  (a sentence)

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from benchmarks import record, table_in_pandas
from torchrec_mtl import TaskChain
from torchrec_mtl.data.parquet import read_batches
from torchrec_mtl.data.table import Bins, ByTime, Dense, History, LogRound, Table, TimeOf, Vocabulary, prepare_table

ROWS, QUICK_ROWS, PART_ROWS, REPEATS = 3_000_000, 20_000, 500_000, 1
USERS, ITEMS = 300_000, 60_000
START, DAYS = 1_790_000_000, 60  # seconds since 1970
Found = tuple[int, dict[str, int], int]  # number of rows, of ids of each field, of values in histories
Run = tuple[Found, float, float, float]  # what was found, seconds, CPU seconds, peak MiB


def declaration(raw: Path) -> Table:
    """The table, a line a field."""
    fields = [
        Vocabulary("user", min_count=3, max_size=200_000),
        Vocabulary("item", min_count=2),
        Vocabulary("shop"),
        Vocabulary("category"),
        Vocabulary("city"),
        Vocabulary("device"),
        Bins("price", 32),
        LogRound("dwell"),
        Dense("age"),
        Dense("ctr"),
        TimeOf("hour", "hour", column="ts"),
        History("recent", "item", last=20, within="30d"),
    ]
    split = ByTime(*(str(np.datetime64(START + day * 86400, "s")) for day in (DAYS - 10, DAYS - 5)))
    return Table("shop", f"{raw}/*.parquet", TaskChain(["click", "cart"]), fields, split=split, time="ts", group="user")


def write_rows(folder: Path, num_rows: int) -> None:
    """Writes random rows as parts in the order of time; some values are missing."""
    for number, first in enumerate(range(0, num_rows, PART_ROWS)):
        size, generator = min(PART_ROWS, num_rows - first), np.random.default_rng(number)
        ts = START + DAYS * 86400 * (first + np.sort(generator.random(size)) * size) / num_rows
        click = generator.random(size) < 0.2

        def key(prefix: str, values: np.ndarray) -> pl.Series:
            return pl.Series(values).cast(pl.String).str.zfill(7).str.replace("^", prefix)

        def some(values: object, rng: np.random.Generator = generator, rows: int = size) -> pl.Series:
            return pl.Series(values).set(pl.Series(rng.random(rows) < 0.02), None)

        item = (generator.random(size) ** 3 * ITEMS).astype(np.int64)
        columns = {
            "user": key("u_", (generator.random(size) ** 2 * USERS).astype(np.int64)),
            "item": key("sku-", item),
            "shop": key("shop", item % 997),
            "category": some(key("c", item % 251)),
            "city": some(key("city", generator.integers(100, size=size))),
            "device": key("d", generator.integers(4, size=size)),
            "price": some(generator.lognormal(3, 1, size).round(2)),
            "dwell": some(generator.exponential(30, size)),
            "age": some(generator.normal(40, 12, size)),
            "ctr": generator.beta(2, 50, size),
            "ts": pl.Series((ts * 10**6).astype(np.int64)).cast(pl.Datetime("us")),
            "click": click.astype(np.int8),
            "cart": (click & (generator.random(size) < 0.3)).astype(np.int8),
        }
        pl.DataFrame(columns).write_parquet(folder / f"part-{number:05}.parquet")


def num_values(file: Path) -> int:
    """The number of values in histories, read piece by piece: the peak is to be that of the preparation."""
    with pq.ParquetFile(file) as opened:
        return sum(len(batch.column(0).flatten()) for batch in read_batches(opened, 2**16, columns=["recent"]))


def ours(raw: Path, folder: Path) -> Found:
    output = prepare_table(declaration(raw), folder / "out")
    report = json.loads((output / "report.json").read_text())
    values = sum(num_values(output / f"{split}.parquet") for split in report["num_rows"])
    return sum(report["num_rows"].values()), report["num_embeddings"], values


def pandas(raw: Path, folder: Path) -> Found:
    split = declaration(raw).split
    assert isinstance(split, ByTime)
    return table_in_pandas.prepare(raw, folder, split.valid_from, split.test_from)


PROGRAMS: dict[str, Callable[[Path, Path], Found]] = {"pandas": pandas, "prepare_table": ours}


def timed(program: Callable[[Path, Path], Found], raw: Path, parent: Path) -> tuple[Found, float, float]:
    """Returns what ``program`` finds, seconds and CPU seconds."""
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        began, cpu = time.perf_counter(), time.process_time()
        found = program(raw, Path(folder))
        return found, time.perf_counter() - began, time.process_time() - cpu


def measure(raw: Path, repeats: int, programs: list[str]) -> dict[str, list[Run]]:
    """Returns the runs of each program, which take turns; stops if they do not find the same."""
    runs: dict[str, list[Run]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name in programs:
            times, peak = record.in_own_process(timed, PROGRAMS[name], raw, raw.parent)
            runs[name].append((*times, peak))
        found = [each[-1][0] for each in runs.values()]
        if found != found[:1] * len(found):
            sys.exit(f"error: they differ, so nothing is timed: {found}")
    return runs


def rows_of(name: str, runs: dict[str, list[Run]], about: record.Row) -> list[record.Row]:
    """Returns a row for each figure; ours also says how many times as fast as pandas in the same round."""
    (num_rows, _, _), *_ = runs[name][0]
    _, seconds, cpu_seconds, peaks = zip(*runs[name], strict=True)
    rows = [
        {"figure": "speed", **record.spread([num_rows / taken for taken in seconds], "rows/s", 0)},
        {"figure": "CPU time", **record.spread([1e6 * taken / num_rows for taken in cpu_seconds], "us/row")},
        {"figure": "peak memory", **record.spread(peaks, "MiB", 0)},
    ]
    if name != "pandas" and "pandas" in runs:
        for row, i in zip(rows, (1, 2), strict=False):
            row["times_pandas"] = round(
                record.ratio([each[i] for each in runs["pandas"]], [each[i] for each in runs[name]]), 2
            )
    return [{"program": name, "rows": num_rows, **about, **row} for row in rows]


def main() -> None:
    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--rows", type=int, nargs="+", help=f"numbers of raw rows ({ROWS})")
        parser.add_argument(
            "--alone", type=int, default=10_000_000, help="rows from which pandas is left out (%(default)s)"
        )

    arguments = record.parse("table_preparation", __doc__, options)
    with record.Results(arguments.results, threads=os.cpu_count() or 1) as results:
        for num_rows in arguments.rows or [QUICK_ROWS if arguments.quick else ROWS]:
            with tempfile.TemporaryDirectory() as folder:
                raw = Path(folder, "raw")
                raw.mkdir()
                write_rows(raw, num_rows)
                megabytes = round(sum(file.stat().st_size for file in raw.iterdir()) / 1e6)
                programs = list(PROGRAMS) if num_rows < arguments.alone else ["prepare_table"]
                runs = measure(raw, arguments.repeats or REPEATS, programs)
            for name in programs:
                results.add(*rows_of(name, runs, {"fields": 12, "raw_megabytes": megabytes}))


if __name__ == "__main__":
    main()
