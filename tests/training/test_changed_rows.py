"""Rows that changed since a checkpoint: exactly these, from any number of ranks and any sharding, whole or absent."""

import itertools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests import processes
from tests.jobs import funnel
from tests.training import ranks
from tests.training.test_checkpoint import configure
from torchrec_mtl.data import BatchLoader, read_split
from torchrec_mtl.errors import InputError
from torchrec_mtl.modules.id_hash import ANY_ID, unhash_ids
from torchrec_mtl.training.checkpoint import Checkpointer, checkpoints, read_changed_rows, save_changed_rows
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.process_group import process_group

KINDS = {"row_wise": "t_user", "column_wise": "t_item", "data_parallel": "t_tags"}
PLAIN = configure("sgd", tables={table: {"sharding": kind} for kind, table in KINDS.items()})
ZERO_COLLISION = {"eviction": "lru", "interval": 2, "buckets": 4}


def _distributed(config, zero_collision):
    return distribute(ranks.build(config, zero_collision=zero_collision), config, ranks.CPU)


def _steps(model, optimizer, data: Path, first: int, last: int) -> None:
    """Steps whose batches have few rows, so that not all ids are in them."""
    of_rank = {"rank": dist.get_rank(), "world_size": dist.get_world_size()}
    batches = BatchLoader(read_split(data, "train"), 4 // of_rank["world_size"], **of_rank)
    for batch in itertools.islice(batches, first, last):
        optimizer.zero_grad()
        model(batch)[0].backward()
        optimizer.step()


def _begin(data: Path, folder: Path) -> None:
    for name, zero_collision in {"plain": None, "zero_collision": ZERO_COLLISION}.items():
        model, optimizer = _distributed(PLAIN if name == "plain" else configure(), zero_collision)
        _steps(model, optimizer, data, 0, 9)
        Checkpointer(folder / name, dist.new_group(backend="gloo")).save(9, model, optimizer, {}, None)


def _go_on(data: Path, folder: Path) -> None:
    """Trains on from the checkpoint, and saves what changed and, to compare, all."""
    own = folder / str(dist.get_world_size())
    for name, zero_collision in {"plain": None, "zero_collision": ZERO_COLLISION}.items():
        model, optimizer = _distributed(PLAIN if name == "plain" else configure(), zero_collision)
        checkpointer = Checkpointer(own / name, dist.new_group(backend="gloo"))
        (since,) = checkpoints(folder / name)
        checkpointer.load(since, model, optimizer)
        save_changed_rows(model, since, own / f"{name}-nothing")
        _steps(model, optimizer, data, 9, 12)
        save_changed_rows(model, since, own / f"{name}-changed")
        checkpointer.save(12, model, optimizer, {}, None)


def rows_by_id(contents, table):
    """The rows of a table by what they are known by."""
    weight = contents[f"{table}.weight"]
    collection, inner, name = table.partition("_embedding_module.embedding_bags.")
    if not inner:
        return dict(enumerate(weight))
    hashed = contents[f"{collection}_managed_collision_collection._managed_collision_modules.{name}.hashed_ids"]
    ids = unhash_ids(hashed).tolist()
    size = len(ids) // ZERO_COLLISION["buckets"]
    ids = [-1 - row // size if row % size == size - 1 else each for row, each in enumerate(ids)]
    return {each: row for each, row in zip(ids, weight, strict=True) if each != ANY_ID}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("changed")
    data = funnel.prepare(folder / "data", train=321, valid=101)
    processes.run(_begin, 2, data, folder)
    for world_size in (1, 2):
        processes.run(_go_on, world_size, data, folder)
    return folder


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", ["plain", "zero_collision"])
def test_what_changed_makes_the_old_rows_the_new_ones(folder, name, world_size):
    own = folder / str(world_size)
    before, after = (ranks.contents(checkpoints(each)[-1]) for each in (folder / name, own / name))
    before, after = ({k.removeprefix("model."): v for k, v in each.items()} for each in (before, after))
    changed = read_changed_rows(own / f"{name}-changed")
    assert len(changed) == 3
    num_removed = 0
    for table, (ids, rows, removed) in changed.items():
        was, now = rows_by_id(before, table), rows_by_id(after, table)
        assert set(ids.tolist()) == {each for each, row in now.items() if each not in was or not row.equal(was[each])}
        assert 0 < len(ids) < len(now) or table.endswith("t_tags")
        assert all(row.equal(now[each]) for each, row in zip(ids.tolist(), rows, strict=True))
        assert set(removed.tolist()) == was.keys() - now.keys()
        num_removed += len(removed)
    assert (num_removed > 0) == (name == "zero_collision")
    assert all(not len(ids) + len(gone) for ids, _, gone in read_changed_rows(own / f"{name}-nothing").values())


def test_a_damaged_or_foreign_folder_is_refused(folder):
    (checkpoint,), changed = checkpoints(folder / "plain"), folder / "1" / "plain-changed"
    with pytest.raises(InputError, match="must be a folder of changed rows"):
        read_changed_rows(checkpoint)
    with process_group(ranks.CPU), pytest.raises(InputError, match="must not exist yet"):
        save_changed_rows(torch.nn.Linear(1, 1), checkpoint, changed)
    file = changed / "rank_00000.pt"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match="was changed since it was written"):
        read_changed_rows(changed)


def test_what_cannot_be_written_is_absent(folder, tmp_path):
    """The checkpoint is of another model."""
    (checkpoint,) = checkpoints(folder / "plain")
    with process_group(ranks.CPU):
        model, _ = _distributed(configure(), ZERO_COLLISION)
        with pytest.raises(InputError, match="must fit the model"):
            save_changed_rows(model, checkpoint, tmp_path / "changed")
    assert list(tmp_path.iterdir()) == []
