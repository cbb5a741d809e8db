"""The memory that a stream takes is what its docstring says, whatever the size of the split."""

import gc
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec_mtl.data import Field, Schema, Split, StreamLoader, parquet, stream_split
from torchrec_mtl.tasks import TaskChain

NUM_GROUPS, GROUP_ROWS, WINDOW, BATCH, NUM_FIELDS = 40, 2**14, 2**16, 2**10, 10


def write(directory: Path, list_length: int) -> pq.FileMetaData:
    fields = [Field(f"f{number}", 2**20) for number in range(NUM_FIELDS)]
    fields += [Field("tags", 2**20, multi_valued=True)] if list_length else []
    Schema("wide", fields, TaskChain(["click"]), dense=["price"], group="f0").save(directory)
    rng, writer = np.random.default_rng(0), None
    for _ in range(NUM_GROUPS):
        columns = {f"f{number}": rng.integers(0, 2**20, GROUP_ROWS) for number in range(NUM_FIELDS)}
        columns |= {"click": rng.integers(0, 2, GROUP_ROWS), "price": rng.random(GROUP_ROWS)}
        if list_length:
            values = pa.array(rng.integers(0, 2**20, GROUP_ROWS * list_length))
            columns["tags"] = pa.FixedSizeListArray.from_arrays(values, list_length).cast(pa.list_(pa.int64()))
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(directory / "train.parquet", table.schema, compression="zstd")
        writer.write_table(table)
    writer.close()
    return pq.read_metadata(directory / "train.parquet")


@contextmanager
def arrow_bytes() -> Iterator[list[int]]:
    """Counts, every millisecond, the bytes that Arrow has taken since this began."""
    pool = pa.default_memory_pool()
    before, done, taken = pool.bytes_allocated(), threading.Event(), []

    def watch() -> None:
        while not done.wait(0.001):
            taken.append(pool.bytes_allocated() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield taken
    finally:
        done.set()
        thread.join()


@pytest.fixture
def slow_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the thread that reads windows get as far ahead as it may before a window becomes batches."""
    from_arrays = Split.from_arrays

    def wait(*arguments: Any) -> Split:
        time.sleep(0.3)
        return from_arrays(*arguments)

    monkeypatch.setattr(Split, "from_arrays", wait)


@pytest.mark.parametrize("list_length", [0, 5])
@pytest.mark.parametrize("world_size", [1, 4])
def test_memory_is_bounded(tmp_path: Path, world_size: int, list_length: int) -> None:
    check_memory(tmp_path, world_size, list_length)


@pytest.mark.usefixtures("slow_batches")
def test_memory_is_bounded_when_windows_are_read_sooner_than_used(tmp_path: Path) -> None:
    check_memory(tmp_path, world_size=1, list_length=5)


def check_memory(tmp_path: Path, world_size: int, list_length: int) -> None:
    group = write(tmp_path, list_length).row_group(0)
    split = stream_split(tmp_path, "train")
    loader = StreamLoader(split, BATCH, shuffle=True, shuffle_window=WINDOW, world_size=world_size)
    gc.collect()
    with arrow_bytes() as taken:
        tracemalloc.start()
        for _batch in loader:
            pass
        python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    arrow = max(taken)

    row = 4 * NUM_FIELDS + 1 + 4 + 8 + (12 + 4 * list_length if list_length else 0)
    n = WINDOW  # of whole row groups
    compressed = sum(group.column(column).total_compressed_size for column in range(group.num_columns))
    slab_rows = min(GROUP_ROWS, parquet.LIST_SLAB_ROWS if list_length else parquet.SLAB_ROWS)
    slab = (40 if list_length else 24) * (NUM_FIELDS + 2 + list_length) * slab_rows
    batch = BATCH * (16 * (NUM_FIELDS + list_length) + 16)  # without the offsets, which are PyTorch's
    stated = 2 * n * row / world_size + n * 4 * list_length / world_size + 24 * n
    stated += compressed + group.total_byte_size + slab + 4 * batch
    assert python + arrow <= stated
    assert stated < 0.7 * len(split) * row
