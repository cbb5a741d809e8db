"""The memory that a stream takes is what its docstring says, whatever the size of the split."""

import gc
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec_mtl.data import Field, Schema, StreamLoader, parquet, stream_split
from torchrec_mtl.tasks import TaskChain

NUM_GROUPS, GROUP_ROWS, WINDOW, NUM_FIELDS = 40, 2**14, 2**16, 10


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


@pytest.mark.parametrize("list_length", [0, 5])
@pytest.mark.parametrize("world_size", [1, 4])
def test_memory_is_bounded(tmp_path: Path, world_size: int, list_length: int) -> None:
    group = write(tmp_path, list_length).row_group(0)
    split = stream_split(tmp_path, "train")
    loader = StreamLoader(split, 1024, shuffle=True, shuffle_window=WINDOW, world_size=world_size)
    gc.collect()
    pool = pa.default_memory_pool()
    arrow, before = 0, pool.bytes_allocated()
    tracemalloc.start()
    for _batch in loader:
        arrow = max(arrow, pool.bytes_allocated() - before)
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    row = 4 * NUM_FIELDS + 1 + 4 + 8 + (12 + 4 * list_length if list_length else 0)
    n = WINDOW + GROUP_ROWS
    compressed = sum(group.column(column).total_compressed_size for column in range(group.num_columns))
    slab_rows = min(GROUP_ROWS, parquet.LIST_SLAB_ROWS if list_length else parquet.SLAB_ROWS)
    decoded = compressed + group.total_byte_size + 32 * (NUM_FIELDS + 2 + list_length) * slab_rows
    stated = 2 * n * row / world_size + n * 4 * list_length / world_size + 24 * n + decoded
    assert python + arrow <= stated
    assert stated < 0.7 * len(split) * row
