"""The memory of a preparation follows the distinct values and the blocks of rows, not the number of rows."""

import tracemalloc
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec_mtl.data import parquet, writer
from torchrec_mtl.data.table import ByTime, Dense, Hashed, History, Table, Vocabulary, counts, formats, history, sources
from torchrec_mtl.data.table.prepare import prepare_table
from torchrec_mtl.tasks import TaskChain

BLOCK, PART_ROWS, ROWS, TAGS = 2**12, 2**13, 2**16, 10
BLOCKS = [
    (formats, "PART_ROWS"),
    (sources, "PART_ROWS"),
    (counts, "NUM_PENDING"),
    (history, "ROWS_IN_MEMORY"),
    (history, "ROWS_WAITING"),
    (parquet, "SLAB_ROWS"),
    (parquet, "LIST_SLAB_ROWS"),
    (writer, "ROW_GROUP"),
    (writer, "LIST_ROW_GROUP"),
]


def table(folder: Path, num_rows: int) -> Table:
    """Writes rows of 500 users, with lists of random ids that no compression makes small, and declares them."""
    raw = folder / f"raw_{num_rows}"
    raw.mkdir(parents=True)
    for number, first in enumerate(range(0, num_rows, PART_ROWS)):
        rng, seconds = np.random.default_rng(number), np.arange(first, first + PART_ROWS)
        tags = pa.FixedSizeListArray.from_arrays(pa.array(rng.integers(0, 2**62, TAGS * PART_ROWS)), TAGS)
        columns = {
            "ts": pl.Series(seconds * 10**6).cast(pl.Datetime("us")).to_arrow(),
            "user": pl.Series(rng.integers(500, size=PART_ROWS)).cast(pl.String).to_arrow(),
            "tags": tags.cast(pa.list_(pa.int64())),
            "price": rng.integers(100, size=PART_ROWS),
            "click": rng.integers(2, size=PART_ROWS),
        }
        pq.write_table(pa.table(columns), raw / f"part-{number:03}.parquet", BLOCK)
    edges = [str(np.datetime64(seconds, "s")) for seconds in (num_rows * 8 // 10, num_rows * 9 // 10)]
    fields = [Vocabulary("user"), Hashed("tags", 2**30), Dense("price"), History("earlier", "user", last=5)]
    return Table("wide", str(raw), TaskChain(["click"]), fields, split=ByTime(*edges), time="ts", group="user")


def prepare(folder: Path, num_rows: int) -> dict[str, float]:
    """Prepares rows in small blocks, and returns what the libraries held at most, in MB."""
    for module, name in BLOCKS:
        assert getattr(module, name) > BLOCK
        setattr(module, name, BLOCK)
    prepare_table(table(folder, PART_ROWS), folder / "first")  # threads and allocators take what they keep
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _kilobytes(status, "VmRSS")
    tracemalloc.start()
    prepare_table(table(folder, num_rows), folder / "second")
    python = tracemalloc.get_traced_memory()[1]
    resident = _kilobytes(status, "VmHWM") - before
    return {"arrow": pa.default_memory_pool().max_memory() / 1e6, "python": python / 1e6, "resident": resident / 1e3}


def _kilobytes(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))


@pytest.mark.verify
def test_four_times_the_rows_take_no_more_memory(tmp_path: Path) -> None:
    peaks = []
    for num_rows in (ROWS, 4 * ROWS):
        with get_context("spawn").Pool(1) as pool:
            peaks.append(pool.apply(prepare, (tmp_path / str(num_rows), num_rows)))
    grown = {name: peaks[1][name] - peaks[0][name] for name in peaks[0]}
    further = 3 * ROWS * TAGS * 8 / 1e6  # of the raw lists alone
    assert max(grown["arrow"], grown["python"]) < 0.1 * further, peaks
    assert grown["resident"] < 0.5 * further, peaks  # allocators keep more or less of what they are given back
