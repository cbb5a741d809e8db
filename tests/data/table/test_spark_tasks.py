from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from torchrec_mtl.data.lists import from_lists, to_lists
from torchrec_mtl.data.table import ByTime, History, Table, Vocabulary, spark_tasks
from torchrec_mtl.data.table.history import earlier_values
from torchrec_mtl.errors import InputError
from torchrec_mtl.tasks import TaskChain

FIELDS = [Vocabulary("item"), History("recent", "item", last=3, within="20s"), History("all", "item", last=99)]
TABLE = Table(
    "shop", "raw", TaskChain(["click"]), FIELDS, time="ts", group="user", split=ByTime("2026-01-01", "2026-01-02")
)


@pytest.mark.parametrize("num_groups", [1, 3, 40])
@pytest.mark.parametrize("rows_at_once", [1, 7, 50, 1000])
@pytest.mark.parametrize("rows_of_batch", [1, 13, 400])
def test_lists_do_not_depend_on_where_batches_end(monkeypatch, num_groups, rows_at_once, rows_of_batch):
    """The last group of a batch may go on in the next one, and the lists go to the rows of several files."""
    monkeypatch.setattr(spark_tasks, "_ROWS", rows_at_once)
    monkeypatch.setattr(spark_tasks, "_SLICE", 8)
    generator, n = np.random.default_rng(0), 300
    groups, times = generator.integers(-num_groups, num_groups, n), generator.integers(0, 50 * 10**6, n)
    times = times // 10**6 * 10**6
    files, values, listed = np.arange(n) // 100, generator.integers(0, 9, n), generator.random((2, n)) < 0.8
    rows = pa.table(
        {"group": groups, "time": times, "file": files.astype(np.int32), "row": np.arange(n) % 100}
        | {f"value{number}": values.astype(np.int32) for number in range(2)}
        | {f"listed{number}": listed[number] for number in range(2)}
    )
    rows = rows.sort_by([(name, "ascending") for name in ("group", "time", "file", "row")])
    job = SimpleNamespace(value=SimpleNamespace(table=TABLE))
    lists = pa.Table.from_batches(spark_tasks.build_lists(job, rows.to_batches(max_chunksize=rows_of_batch)))

    lists = lists.sort_by([("file", "ascending"), ("row", "ascending")])
    reader, found = spark_tasks.SortedLists(TABLE, lists.to_batches(max_chunksize=rows_of_batch)), []
    for number in range(3):
        assert reader.file() == number
        found += [reader.take(60), reader.take(40)]
    assert reader.file() is None
    for position, (name, within) in enumerate({"recent": 20 * 10**6, "all": None}.items()):
        last = TABLE.histories[position].last
        expected = earlier_values(groups, times, values, listed[position], last=last, within=within)
        assert to_lists(*expected).to_list() == [row for part in found for row in to_lists(*part[name]).to_list()]


def test_lists_without_values_keep_their_rows():
    ids = pa.record_batch(
        {"file": pa.array([0, 0], pa.int32()), "row": [0, 1]}
        | {f"list{number}": pa.array([[], []], pa.list_(pa.int32())) for number in range(2)}
    )
    reader = spark_tasks.SortedLists(TABLE, [ids])
    for num_rows in (0, 2, 0):  # a part whose rows are all bad has none
        offsets = [from_lists(to_lists(*each))[1].tolist() for each in reader.take(num_rows).values()]
        assert offsets == [[0] * (num_rows + 1)] * 2
    with pytest.raises(InputError, match="must not change"):
        reader.take(1)
