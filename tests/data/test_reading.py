"""Reading a prepared data set: memory-mapped columns, the order of rows, saved positions, damage."""

import itertools
import os
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.prepared import SCHEMA, write
from torchrec_mtl.data import BatchLoader, Field, MultiTaskBatch, Schema, Split, build_once, mapped, parquet, read_split
from torchrec_mtl.data.loader import prefetched
from torchrec_mtl.errors import InputError, TrainingError, redacted, shown
from torchrec_mtl.tasks import TaskChain

TASKS = TaskChain(["click"])
WEIGHTED = Schema(
    "weighted",
    [Field("user", 2**33), Field("tags", 9, multi_valued=True, weight_column="tag_weights"), Field("store", 3)],
    TASKS,
)
ROWS = {
    "user": [2**32, 5, 7],
    "tags": [[3, 8], [], [1]],
    "tag_weights": [[0.5, -2.0], [], [4.0]],
    "store": [2, 0, 1],
    "click": [1, 0, 1],
}


def write_weighted(directory: Path, **changes: list) -> Path:
    WEIGHTED.save(directory)
    pl.DataFrame({**ROWS, **changes}, strict=False).write_parquet(directory / "train.parquet")
    return directory / "train.parquet"


def numbered(num_rows: int) -> Split:
    """Returns a split in which the only id of a row is its number."""
    schema = Schema("numbers", [Field("row", num_rows)], TASKS)
    return Split(schema, {"row": np.arange(num_rows)}, np.zeros((num_rows, 1)))


def ids(batch: MultiTaskBatch) -> list[int]:
    return batch.sparse_features.values()[: len(batch.labels) - batch.num_padded].tolist()


numbers = st.integers(1, 300)
loaders = st.fixed_dictionaries(
    {"batch_size": st.integers(1, 40), "shuffle_window": st.integers(1, 400), "seed": st.integers(0, 2**40)}
)


@settings(max_examples=60)
@given(numbers, loaders, st.integers(1, 5), st.integers(0, 3))
def test_an_epoch_has_every_row_once_in_the_same_global_batches_on_any_number_of_ranks(
    num_rows: int, options: dict, world_size: int, epoch: int
) -> None:
    split = numbered(num_rows)
    rank_batches = []
    for rank in range(world_size):
        loader = BatchLoader(split, **options, shuffle=True, rank=rank, world_size=world_size)
        loader.set_epoch(epoch)
        rank_batches.append([ids(batch) for batch in loader])
    global_batches = [list(itertools.chain(*parts)) for parts in zip(*rank_batches, strict=True)]
    assert sorted(itertools.chain(*global_batches)) == list(range(num_rows))

    alone = BatchLoader(split, **{**options, "batch_size": options["batch_size"] * world_size}, shuffle=True)
    alone.set_epoch(epoch)
    assert [ids(batch) for batch in alone] == global_batches


@settings(max_examples=60)
@given(numbers, loaders, st.booleans(), st.integers(1, 3), st.data())
def test_a_loader_resumes_at_any_step(
    num_rows: int, options: dict, shuffle: bool, world_size: int, data: st.DataObject
) -> None:
    split, rank = numbered(num_rows), data.draw(st.integers(0, world_size - 1))

    def new_loader() -> BatchLoader:
        return BatchLoader(split, **options, shuffle=shuffle, rank=rank, world_size=world_size)

    loader, resumed = new_loader(), new_loader()
    loader.set_epoch(2)
    whole = [ids(batch) for batch in loader]
    step = data.draw(st.integers(0, len(loader)))
    resumed.load_state_dict({**new_loader().state_dict(), "epoch": 2, "step": step})
    resumed.set_epoch(2)  # as the training loop does
    assert [ids(batch) for batch in resumed] == whole[step:]
    assert [ids(batch) for batch in resumed] == whole  # later iterations start at the first batch


def test_a_resumed_loader_does_not_read_earlier_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    split, read = numbered(100), []
    whole = split.batch
    monkeypatch.setattr(split, "batch", lambda rows, *options: read.append(rows.tolist()) or whole(rows, *options))
    loader = BatchLoader(split, 10)
    loader.load_state_dict({**loader.state_dict(), "step": 7})
    assert len(list(loader)) == 3
    assert read == [list(range(start, start + 10)) for start in (70, 80, 90)]


def test_a_position_needs_the_same_rows_order_steps_and_ids_on_any_number_of_ranks() -> None:
    state = BatchLoader(numbered(100), 4, shuffle=True, world_size=2, rank=1).state_dict()
    same_step_size = BatchLoader(numbered(100), 8, shuffle=True, shuffle_window=1000)
    same_step_size.load_state_dict(state)
    coded = numbered(100)
    coded.schema = replace(coded.schema, vocabulary_digest="other")
    for other, sentence in [
        (BatchLoader(numbered(99), 8, shuffle=True), "`num_rows` (=99) must be that of the saved position (100)"),
        (BatchLoader(numbered(100), 4, shuffle=True), "`rows_per_step` (=4) must be that of the saved position (8)"),
        (BatchLoader(numbered(100), 8), "`seed` (=-1) must be that"),
        (BatchLoader(numbered(100), 8, shuffle=True, seed=1), "`seed` (=1) must be that"),
        (BatchLoader(numbered(100), 8, shuffle=True, shuffle_window=9), "`shuffle_window` (=9) must be that"),
        (BatchLoader(coded, 8, shuffle=True), "`vocabulary_digest` (=other) must be that of the saved position (None)"),
    ]:
        with pytest.raises(InputError, match=re.escape(sentence)):
            other.load_state_dict(state)


def test_an_iteration_keeps_the_epoch_of_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = BatchLoader(numbered(100), 10, shuffle=True)
    first = [ids(batch) for batch in loader]
    batches = iter(loader)
    loader.set_epoch(1)  # before the thread has started
    assert [ids(batch) for batch in batches] == first


def test_one_window_is_the_permutation_of_seed_and_epoch() -> None:
    loader = BatchLoader(numbered(1000), 1000, shuffle=True, seed=5)
    loader.set_epoch(2)
    assert ids(next(iter(loader))) == np.random.default_rng([5, 2]).permutation(1000).tolist()


def test_a_window_reads_few_contiguous_blocks_from_all_over_the_split() -> None:
    loader = BatchLoader(numbered(64_000), 6400, shuffle=True, shuffle_window=6400)
    windows = [sorted(ids(batch)) for batch in loader]
    for rows in windows:
        jumps = np.flatnonzero(np.diff(rows) != 1)
        assert len(jumps) < 64  # blocks of 100 rows, some of them neighbours
        assert rows[0] < 6400  # fails with probability (9/10)^64
        assert rows[-1] >= 64_000 - 6400
    assert ids(next(iter(loader))) != windows[0]


def test_windows_and_epochs_differ() -> None:
    split = numbered(640)
    orders = set()
    for window, epoch in itertools.product((10, 64, 100, 640), range(3)):
        loader = BatchLoader(split, 640, shuffle=True, shuffle_window=window)
        loader.set_epoch(epoch)
        orders.add(tuple(ids(next(iter(loader)))))
    assert len(orders) == 12


def test_weights_stay_with_their_ids(tmp_path: Path) -> None:
    write_weighted(tmp_path)
    split = read_split(tmp_path, "train")
    sparse = split.batch(torch.tensor([2, 0])).sparse_features
    assert sparse["user"].values().tolist() == [7, 2**32]
    assert sparse["tags"].values().tolist() == [1, 3, 8]
    assert sparse["tags"].weights().tolist() == [4.0, 0.5, -2.0]
    assert sparse["store"].weights().tolist() == [1.0, 1.0]
    assert WEIGHTED.columns == ("user", "tags", "store", "tag_weights", "click")
    assert Schema.load(tmp_path) == WEIGHTED


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"tag_weights": [[0.5], [], [1.0]]},
            "column 'tag_weights', row 0 (counted from 0): must have as many weights as 'tags' has ids",
        ),
        ({"tag_weights": [[0.5, 1.0], [], [float("nan")]]}, "column 'tag_weights', row 2 (counted from 0): weight of"),
        ({"tag_weights": [[0.5, None], [], [1.0]]}, "column 'tag_weights', row 0 (counted from 0): must not be null"),
        ({"tag_weights": [["a", "b"], [], ["c"]]}, "column 'tag_weights' must hold numbers, not String"),
        ({"tag_weights": [0.5, 1.0, 2.0]}, "column 'tag_weights' must hold lists of weights, not Float64"),
    ],
)
def test_wrong_weights(tmp_path: Path, changes: dict, sentence: str) -> None:
    file = write_weighted(tmp_path, **changes)
    with pytest.raises(InputError, match="^" + re.escape(f"{file}: {sentence}")):
        read_split(tmp_path, "train")


def test_slabs_make_up_one_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    whole = read_split(tmp_path, "train")
    everything = whole.batch(torch.arange(4))
    monkeypatch.setattr(parquet, "LIST_SLAB_ROWS", 3)
    shutil.rmtree(tmp_path / ".columns")
    slabs = read_split(tmp_path, "train")
    assert slabs.arrays.keys() == whole.arrays.keys()
    for name, array in slabs.arrays.items():
        assert array.dtype == whole.arrays[name].dtype
    again = slabs.batch(torch.arange(4))
    assert again.sparse_features.values().equal(everything.sparse_features.values())
    assert again.sparse_features.lengths().equal(everything.sparse_features.lengths())
    assert again.dense_features.equal(everything.dense_features)
    assert again.labels.equal(everything.labels)
    assert again.weights.equal(everything.weights)
    assert slabs.base_rates().equal(whole.base_rates())

    file = write(tmp_path, store=[0, 0, 0, 9])
    with pytest.raises(InputError, match=re.escape(f"{file}: column 'store', row 3 (counted from 0): id (=9)")):
        read_split(tmp_path, "train")


lists_of_weights = st.lists(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0.5, 2.0])), max_size=3), min_size=1)


@given(lists_of_weights, st.data())
def test_repeated_lists_are_stored_once_and_read_each_time(
    rows: list[list[tuple[int, float]]], data: st.DataObject
) -> None:
    schema = Schema("lists", [Field("tags", 3, multi_valued=True, weight_column="w")], TASKS)
    offsets = np.cumsum([0, *map(len, rows)])
    values, weights = ([pair[part] for row in rows for pair in row] for part in range(2))
    split = Split(schema, {"tags": (np.array(values, int), offsets, weights)}, np.zeros((len(rows), 1)))
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1)))
    sparse = split.batch(torch.tensor(chosen, dtype=torch.int64)).sparse_features
    assert sparse.lengths().tolist() == [len(rows[row]) for row in chosen]
    assert sparse.values().tolist() == [tag for row in chosen for tag, _ in rows[row]]
    assert sparse.weights().tolist() == [weight for row in chosen for _, weight in rows[row]]
    runs = [row for row, _ in itertools.groupby(rows)]
    assert len(split.arrays["list_0_values"]) == sum(map(len, runs))


def test_the_columns_of_a_replaced_file_are_written_again(tmp_path: Path) -> None:
    write(tmp_path)
    before = read_split(tmp_path, "train")
    write(tmp_path, store=[0, 1, 2, 3])
    after = read_split(tmp_path, "train")
    assert after.batch(torch.arange(4)).sparse_features["store"].values().tolist() == [0, 1, 2, 3]
    assert before.batch(torch.arange(4)).sparse_features["store"].values().tolist() == [4, 0, 1, 1]  # still mapped
    assert len([folder for folder in (tmp_path / ".columns").iterdir() if folder.is_dir()]) == 1


def test_a_refused_file_leaves_no_columns(tmp_path: Path) -> None:
    write(tmp_path, store=[0, 0, 9, 0])
    for _ in range(2):
        with pytest.raises(InputError, match="column 'store', row 2"):
            read_split(tmp_path, "train")
    assert not [path for path in (tmp_path / ".columns").iterdir() if path.is_dir()]


def build(folder: Path) -> Schema:
    for split in ("train", "valid", "test"):
        write(folder, split)
    return Schema(SCHEMA.name, SCHEMA.fields, SCHEMA.tasks, SCHEMA.dense, SCHEMA.group)


def test_a_published_data_set_is_read_without_writing(tmp_path: Path) -> None:
    directory = build_once(tmp_path / "shop", build)
    before = sorted((path, path.stat().st_mtime_ns) for path in directory.rglob("*"))
    assert len(read_split(directory, "valid")) == 4
    assert sorted((path, path.stat().st_mtime_ns) for path in directory.rglob("*")) == before


def test_columns_that_cannot_be_written(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / ".columns").write_text("in the way")
    with pytest.raises(InputError, match=r"\.columns: the columns of train\.parquet cannot be written there \("):
        read_split(tmp_path, "train")


def write_columns(directory: Path) -> Path:
    write(directory)
    read_split(directory, "train")
    return next(path for path in (directory / ".columns").iterdir() if path.is_dir())


@pytest.mark.parametrize(
    "name", ["labels", "dense", "ids_uint8", "list_0_values", "list_starts", "list_lengths", "groups"]
)
@pytest.mark.parametrize("cut", ["missing", "empty", "short", "long", "garbage"])
def test_an_incomplete_file_of_columns(tmp_path: Path, name: str, cut: str) -> None:
    file = write_columns(tmp_path) / f"{name}.npy"
    content = file.read_bytes()
    file.unlink()
    changed = {"empty": b"", "short": content[:-1], "long": content + b"x", "garbage": b"x" * len(content)}
    if cut in changed:
        file.write_bytes(changed[cut])
    with pytest.raises(InputError, match="^" + re.escape(str(file))):
        read_split(tmp_path, "train")


def test_a_flipped_bit_of_a_column_is_refused_before_any_batch(tmp_path: Path) -> None:
    folder = write_columns(tmp_path)
    for file in folder.glob("*.npy"):
        content = file.read_bytes()
        changed = bytearray(content)
        changed[-1] ^= 1
        file.write_bytes(changed)
        with pytest.raises(
            InputError, match="^" + re.escape(f"{file}: damaged: its values are not the ones that were")
        ):
            read_split(tmp_path, "train")
        file.write_bytes(content)


def test_swapped_files_are_refused(tmp_path: Path) -> None:
    pl.DataFrame({"a": [[0], [1]], "b": [[1], [0]], "click": [0, 1]}).write_parquet(tmp_path / "train.parquet")
    Schema("two", [Field(name, 2, multi_valued=True) for name in "ab"], TASKS).save(tmp_path)
    read_split(tmp_path, "train")
    (folder,) = (path for path in (tmp_path / ".columns").iterdir() if path.is_dir())
    first, second, aside = (folder / f"{name}.npy" for name in ("list_0_values", "list_1_values", "aside"))
    for source, target in ((first, aside), (second, first), (aside, second)):
        source.rename(target)
    with pytest.raises(InputError, match="^" + re.escape(f"{first}: damaged: its values are not the ones")):
        read_split(tmp_path, "train")


def test_a_copy_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, checked = write_columns(tmp_path), []
    times = {file: file.stat().st_mtime_ns for file in folder.glob("*.npy")}
    check = mapped._check_checksum
    monkeypatch.setattr(mapped, "_check_checksum", lambda file, *others: checked.append(file) or check(file, *others))
    read_split(tmp_path, "train")
    assert checked == []
    assert len(set(times.values())) == len(times)
    for file in times:
        os.utime(file)
    for _ in range(2):
        assert len(read_split(tmp_path, "train")) == 4
    assert sorted(checked) == sorted(times)


def test_an_array_of_another_type(tmp_path: Path) -> None:
    folder = write_columns(tmp_path)
    np.save(folder / "labels.npy", np.zeros((4, 3), np.int64))
    with pytest.raises(InputError, match=r"labels\.npy: damaged: has .*int64|labels\.npy: damaged: has .*<i8"):
        read_split(tmp_path, "train")
    (folder / "arrays.json").write_text("{")
    with pytest.raises(InputError, match=r"arrays\.json: cannot be read"):
        read_split(tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("ids_uint8", 250, "damaged: an id of 'store' is not in 0 .. `num_embeddings` - 1 (=4)"),
        ("ids_int64", -1, "damaged: an id of 'user' is not in"),
        ("list_0_values", 4, "damaged: an id of 'tags' is not in"),
        ("list_starts", 99, "damaged: a list of 'tags' is outside the field's values"),
        ("list_lengths", -1, "damaged: a list of 'tags' is outside the field's values"),
        ("labels", 2, "damaged: a label is neither 0 nor 1"),
        ("dense", np.nan, "damaged: a dense value, label or weight is not finite"),
        ("weights", np.inf, "damaged: a dense value, label or weight is not finite"),
    ],
)
def test_values_that_were_never_written(tmp_path: Path, name: str, value: float, sentence: str) -> None:
    folder = write_columns(tmp_path)
    file = folder / f"{name}.npy"
    time = file.stat().st_mtime_ns
    array = np.load(file, mmap_mode="r+")
    array[0] = value
    array.flush()
    os.utime(file, ns=(time, time))  # so that the damage shows only when the value is read
    with pytest.raises(InputError, match=re.escape(f"{folder}: {sentence}")):
        list(BatchLoader(read_split(tmp_path, "train"), 2))


def test_the_loader_raises_at_a_damaged_batch_and_not_before() -> None:
    split = numbered(10)
    split.arrays["ids_uint8"][7] = 77
    batches = iter(BatchLoader(split, 3))
    assert [ids(next(batches)) for _ in range(2)] == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(InputError, match="damaged: an id of 'row'"):
        next(batches)


def test_a_stuck_reader_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchrec_mtl.data.loader.TIMEOUT", 0.2)
    split, stuck = numbered(10), threading.Event()
    whole = split.batch
    monkeypatch.setattr(split, "batch", lambda rows, *options: whole(rows, *options) if rows[0] < 6 else stuck.wait())
    loader = BatchLoader(split, 3)
    with pytest.raises(TrainingError, match=re.escape("Split: step 2 (counted from 0) was not read within 0.2 s")):
        list(loader)
    stuck.set()


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("reader of")]


def test_the_thread_of_a_loader_redacts_as_its_starter_does() -> None:
    def items():
        for _ in range(3):
            yield shown(98765)

    assert set(prefetched(items(), 2, "items")) == {"98765"}
    with redacted():
        batches = prefetched(items(), 2, "items")
        assert set(batches) == {"<redacted>"}


def test_an_abandoned_iteration_ends_its_thread() -> None:
    computed = []

    def items():
        for item in range(100):
            computed.append(item)
            yield item

    batches = prefetched(items(), 2, "items")
    next(batches)
    batches.close()
    for thread in readers():
        thread.join(10)
    assert not readers()
    assert len(computed) <= 4


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_no_more_items_than_the_depth_are_computed_ahead(depth: int) -> None:
    taken, waiting = [0], []

    def items():
        for item in range(30):
            waiting.append(item - taken[0])
            yield item

    for _ in prefetched(items(), depth, "items"):
        taken[0] += 1
    assert max(waiting) <= depth


def test_processes_share_the_mapped_memory(tmp_path: Path) -> None:
    split = read_split(write_columns(tmp_path).parent.parent, "train")
    assert not any(array.flags.writeable for array in split.arrays.values())
    maps = Path(f"/proc/{os.getpid()}/maps").read_text()
    assert f"{split.source}/labels.npy" in maps
