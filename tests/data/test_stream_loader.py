"""Streamed splits: every row once an epoch, the same steps on any number of ranks, from any position; what is read."""

import itertools
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_loader import Source, assert_has_rows, sources
from torchrec_mtl.data import (
    BatchLoader,
    Field,
    MultiTaskBatch,
    Schema,
    StreamedSplit,
    StreamLoader,
    read_split,
    stream_split,
)
from torchrec_mtl.data.stream_order import StreamOrder
from torchrec_mtl.data.stream_reader import RowGroupReader
from torchrec_mtl.errors import InputError
from torchrec_mtl.tasks import TaskChain

NUMBERS = Schema("numbers", [Field("row", 2**20)], TaskChain(["click"]), group="row")


def numbered(directory: str | Path, files: list[list[int]]) -> StreamedSplit:
    """Returns a split in which the only id of a row is its number, given the rows of each row group of each file."""
    folder, first = Path(directory) / "train.parquet", 0
    folder.mkdir()
    NUMBERS.save(directory)
    for number, groups in enumerate(files):
        schema = pa.schema([("row", pa.int32()), ("click", pa.int8())])
        with pq.ParquetWriter(folder / f"part-{number:05d}.parquet", schema, compression="zstd") as writer:
            for rows in groups:
                row = np.arange(first, first + rows, dtype=np.int32)
                writer.write_table(pa.table({"row": row, "click": row.astype(np.int8) % 2}), row_group_size=rows)
                first += rows
    return stream_split(directory, "train")


def ids(batch: MultiTaskBatch) -> list[int]:
    return batch.sparse_features.values()[: len(batch.labels) - batch.num_padded].tolist()


files = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=6), min_size=1, max_size=4)
options = st.fixed_dictionaries(
    {"shuffle": st.booleans(), "shuffle_window": st.integers(1, 200), "seed": st.integers(0, 2**40)}
)


class Steps:
    """The rows of each step of an epoch, of all ranks together, from a saved position on."""

    def __init__(self, split: StreamedSplit, world_size: int, step_size: int, position: dict, **options) -> None:
        self.loaders = [
            StreamLoader(split, step_size // world_size, **options, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        batches = []
        for loader in self.loaders:
            loader.load_state_dict({**loader.state_dict(), **position})
            loader.set_epoch(position["epoch"])  # as the training loop does
            batches.append(list(loader))
            rows = [ids(batch) for batch in batches[-1]]
            assert [part.tolist() for part in loader.rows()][position["step"] :] == rows
            assert [part.tolist() for part in loader.groups()][position["step"] :] == rows
            assert [batch.groups[: len(batch.groups) - batch.num_padded].tolist() for batch in batches[-1]] == rows
            assert len(rows) == len(loader) - position["step"]
        self.rows = [sorted(itertools.chain(*map(ids, of_step))) for of_step in zip(*batches, strict=True)]
        self.sizes = [{len(batch.labels) for batch in of_step} for of_step in zip(*batches, strict=True)]


@settings(max_examples=25, deadline=None)
@given(files, options, st.integers(1, 10), st.integers(0, 3), st.booleans(), st.data())
def test_steps_have_every_row_once_and_are_the_same_on_any_number_of_ranks_from_any_position(
    files: list[list[int]], options: dict, batch_size: int, epoch: int, drop_last: bool, data: st.DataObject
) -> None:
    step_size, num_rows = 12 * batch_size, sum(itertools.chain(*files))
    options["drop_last"] = drop_last and step_size <= num_rows
    with tempfile.TemporaryDirectory() as directory:
        split = numbered(directory, files)
        alone = Steps(split, 1, step_size, {"epoch": epoch, "step": 0}, **options)
        seen = list(itertools.chain(*alone.rows))
        assert len(set(seen)) == len(seen) == (num_rows // step_size * step_size if options["drop_last"] else num_rows)
        for world_size in (1, 2, 3, 4):
            step = data.draw(st.integers(0, len(alone.rows)))
            saved = {**alone.loaders[0].state_dict(), "epoch": epoch, "step": step}
            resumed = Steps(split, world_size, step_size, saved, **options)
            assert resumed.rows == alone.rows[step:]
            assert all(len(sizes) == 1 for sizes in resumed.sizes)  # batches of a step are of one size


@settings(max_examples=30, deadline=None)
@given(sources(), st.integers(1, 12), st.integers(1, 4), st.integers(1, 9), st.booleans(), st.integers(0, 9))
def test_batches_hold_the_rows_with_their_lists_labels_and_padding(
    source: Source, batch_size: int, world_size: int, group_rows: int, shuffle: bool, epoch: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        source.write(directory)
        file = Path(directory) / "train.parquet"
        pl.read_parquet(file).write_parquet(file, row_group_size=group_rows)
        split, mapped = stream_split(directory, "train"), read_split(directory, "train")
        assert split.base_rates().equal(mapped.base_rates())
        seen, of_step, said = [], Counter(), {}
        for rank in range(world_size):
            at = {"rank": rank, "world_size": world_size}
            loader = StreamLoader(split, batch_size, shuffle, shuffle_window=10, **at)
            loader.set_epoch(epoch)
            rows = [part.tolist() for part in loader.rows()]
            first = StreamLoader(split, batch_size, shuffle, shuffle_window=10, world_size=world_size)
            first.set_epoch(epoch)
            for step, (batch, part, first_rank_rows) in enumerate(zip(loader, rows, first.rows(), strict=True)):
                of_step[step] += len(part)
                assert said.setdefault(step, batch.num_rows_of_all) == batch.num_rows_of_all
                assert_has_rows(batch, source, part + first_rank_rows[: batch.num_padded].tolist())
                if batch.num_padded:
                    assert batch.weights.tolist() == [[1, 1]] * len(part) + [[0, 0]]
            assert len(loader) == len(BatchLoader(mapped, batch_size, **at))
            assert [len(part) for part in rows] == [len(part) for part in BatchLoader(mapped, batch_size, **at).rows()]
            seen += [row for part in rows for row in part]
        assert sorted(seen) == list(range(len(source.labels)))
        assert said == of_step


def test_without_shuffle_rows_keep_their_order(tmp_path: Path) -> None:
    loader = StreamLoader(numbered(tmp_path, [[3, 5], [4]]), 5, shuffle_window=4)
    assert [ids(batch) for batch in loader] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]


def test_seed_and_epoch_decide_the_order(tmp_path: Path) -> None:
    split = numbered(tmp_path, [[50] * 4])
    loader, same = StreamLoader(split, 8, shuffle=True, seed=3), StreamLoader(split, 8, shuffle=True, seed=3)
    first = [ids(batch) for batch in loader]
    assert first == [ids(batch) for batch in loader] == [ids(batch) for batch in same]
    loader.set_epoch(1)
    assert first != [ids(batch) for batch in loader]
    assert first != [ids(batch) for batch in StreamLoader(split, 8, shuffle=True, seed=4)]


def test_the_window_is_at_least_four_row_groups(tmp_path: Path) -> None:
    split = numbered(tmp_path, [[50] * 4])
    assert StreamLoader(split, 8, shuffle=True).state_dict()["shuffle_window"] == 200  # the whole split
    split.group_rows = np.array([2**19, 2**19, 2**20 - 1, 2**22])
    assert StreamLoader(split, 8, shuffle=True).state_dict()["shuffle_window"] == len(split)
    split.group_rows = np.full(64, 2**17)
    assert StreamLoader(split, 8, shuffle=True).state_dict()["shuffle_window"] == 2**20
    split.group_rows = np.full(64, 2**19)
    assert StreamLoader(split, 8, shuffle=True).state_dict()["shuffle_window"] == 2**21


def test_a_position_needs_the_same_files_window_and_seed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    split, other = numbered(tmp_path / "a", [[50] * 4]), numbered(tmp_path / "b", [[50] * 3, [50]])
    state = StreamLoader(split, 8, shuffle=True, shuffle_window=60).state_dict()
    for loader, name in [
        (StreamLoader(other, 8, shuffle=True, shuffle_window=60), "fingerprint"),
        (StreamLoader(split, 8, shuffle=True, shuffle_window=61), "shuffle_window"),
        (StreamLoader(split, 8, shuffle=True, shuffle_window=60, seed=1), "seed"),
        (StreamLoader(split, 4, shuffle=True, shuffle_window=60), "rows_per_step"),
    ]:
        with pytest.raises(InputError, match=rf"`{name}` \(=.*\) must be that of the saved position"):
            loader.load_state_dict(state)


@pytest.mark.parametrize("world_size", [1, 2, 8, 64])
def test_a_rank_reads_its_share_of_the_row_groups(tmp_path: Path, world_size: int) -> None:
    split, read = numbered(tmp_path, [[13, 21, 14] * 171]), []
    tables = RowGroupReader.tables
    for rank in range(0, world_size, 7):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                RowGroupReader,
                "tables",
                lambda reader, group, *rest: read.append(group) or tables(reader, group, *rest),
            )
            at = {"rank": rank, "world_size": world_size}
            list(StreamLoader(split, 4, shuffle=True, shuffle_window=256 * 16 + 5, **at))
        assert len(read) == len(set(read)) <= 513 // world_size + 3 * 2  # three windows
        read.clear()


def test_a_resumed_loader_does_not_read_earlier_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split, read = numbered(tmp_path, [[10] * 20]), []
    loader = StreamLoader(split, 10, shuffle=True, shuffle_window=40)
    whole = [ids(batch) for batch in loader]
    tables = RowGroupReader.tables
    monkeypatch.setattr(
        RowGroupReader,
        "tables",
        lambda reader, group, *rest: read.append(group) or tables(reader, group, *rest),
    )
    loader.load_state_dict({**loader.state_dict(), "step": 13})
    assert [ids(batch) for batch in loader] == whole[13:]
    assert len(read) == 8  # those of the last two windows of four


@pytest.mark.parametrize("window", [1, 640, 2000, 6400])
def test_a_window_mixes_the_rows_of_its_row_groups(window: int) -> None:
    order = StreamOrder(np.full(64, 100), window, shuffle=True, seed=0, epoch=0)
    sizes = np.diff(order.starts)
    assert (abs(sizes - window) < 100).all() if window != 2000 else sizes.tolist() == [2000, 2000, 2000, 400]
    for number, groups in enumerate(order.windows):
        start, stop = order.starts[number : number + 2]
        rows = order.rows(number, np.arange(start, stop))
        assert sorted(rows.tolist()) == list(range(stop - start))
        for part in np.array_split(rows, max(1, len(groups) // 4)):  # every group is in every part, as evenly as can be
            counts = np.bincount(part // 100, minlength=len(groups))
            assert counts.min() > 0.5 * counts.max()
        if len(rows) > 100:
            assert abs(np.corrcoef(rows, np.arange(len(rows)))[0, 1]) < 0.1
