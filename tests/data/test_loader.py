import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel, EvalPipelineSparseDist, TrainPipelineBase

from tests import processes
from torchrec_mtl.data import BatchLoader, Field, MultiTaskBatch, Schema, Split, read_split
from torchrec_mtl.errors import InputError
from torchrec_mtl.tasks import TaskChain

TASKS = TaskChain(["click", "buy"])


@dataclass
class Source:
    """The rows of a split as plain lists."""

    fields: list[Field]
    ids: list[list]  # by field
    labels: list[tuple[int, int]]

    def write(self, directory: str) -> None:
        columns = {
            field.name: pl.Series(ids, dtype=pl.List(pl.Int64) if field.multi_valued else pl.Int64)
            for field, ids in zip(self.fields, self.ids, strict=True)
        }
        targets = {name: [row[task] for row in self.labels] for task, name in enumerate(TASKS)}
        frame = pl.DataFrame({**columns, **targets}).with_row_index("row")
        Schema("any", self.fields, TASKS, dense=["row"]).save(directory)
        frame.write_parquet(Path(directory) / "train.parquet")


@st.composite
def sources(draw: st.DrawFn) -> Source:
    num_rows = draw(st.integers(1, 30))
    fields, ids = [], []
    for index in range(draw(st.integers(1, 4))):
        field = Field(
            f"f{index}",
            draw(st.sampled_from([1, 200, 300, 2**15 + 1, 2**31 + 5, 2**45])),
            draw(st.booleans()),
        )
        value = st.integers(0, field.num_embeddings - 1)
        column = st.lists(value, max_size=3) if field.multi_valued else value
        fields.append(field)
        ids.append(draw(st.lists(column, min_size=num_rows, max_size=num_rows)))
    labels = draw(st.lists(st.sampled_from([(0, 0), (1, 0), (1, 1)]), min_size=num_rows, max_size=num_rows))
    return Source(fields, ids, labels)


def assert_has_rows(batch: MultiTaskBatch, source: Source, rows: list[int]) -> None:
    """The last ``num_padded`` rows have no ids, so that no rank counts them."""
    assert batch.dense_features.tolist() == [[row] for row in rows]
    assert batch.labels.tolist() == [list(source.labels[row]) for row in rows]
    sparse = batch.sparse_features
    assert sparse.keys() == [field.name for field in source.fields]
    assert sparse.stride() == len(rows)
    values, lengths, offsets = sparse.values().tolist(), sparse.lengths().tolist(), sparse.offsets().tolist()
    of_rows, padding = rows[: len(rows) - batch.num_padded], [[]] * batch.num_padded
    lists = []
    for column in source.ids:
        lists += [column[row] if isinstance(column[row], list) else [column[row]] for row in of_rows] + padding
    assert values == [value for ids in lists for value in ids]
    assert lengths == [len(ids) for ids in lists]
    assert offsets == [sum(lengths[:position]) for position in range(len(lengths) + 1)]


@given(sources(), st.integers(1, 12), st.integers(1, 4), st.booleans(), st.integers(0, 9))
def test_ranks_divide_the_rows_and_use_each_once(
    source: Source, batch_size: int, world_size: int, shuffle: bool, epoch: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        source.write(directory)
        split = read_split(directory, "train")
    loaders = [BatchLoader(split, batch_size, shuffle, rank=rank, world_size=world_size) for rank in range(world_size)]
    loaders[0].set_epoch(epoch)
    seen: list[int] = []
    steps, of_step, said = set(), Counter(), {}
    for loader in loaders:
        loader.set_epoch(epoch)
        batches, rows = list(loader), [part.tolist() for part in loader.rows()]
        for step, (batch, part, first_rank_rows) in enumerate(zip(batches, rows, loaders[0].rows(), strict=True)):
            of_step[step] += len(part)
            assert said.setdefault(step, batch.num_rows_of_all) == batch.num_rows_of_all
            assert len(batch.labels) == len(first_rank_rows)  # the same on all ranks
            assert_has_rows(batch, source, part + first_rank_rows[: batch.num_padded].tolist())
            if batch.num_padded:
                assert batch.weights.tolist() == [[1, 1]] * len(part) + [[0, 0]] * batch.num_padded
        assert len(loader) == len(batches)
        steps.add(len(batches))
        seen += [row for part in rows for row in part]
        assert all(len(part) == batch_size for part in rows[:-1])
        assert len(rows[-1]) <= batch_size
    assert said == of_step
    assert sorted(seen) == list(range(len(source.labels)))
    assert len(steps) == 1


def make_split(num_rows: int) -> Split:
    ids = {"f": torch.arange(num_rows) % 7}
    labels = torch.stack([torch.arange(num_rows) % 2] * 2, dim=1)
    return Split(Schema("any", [Field("f", 7)], TASKS), ids, labels)


def row_order(loader: BatchLoader) -> list[int]:
    return torch.cat(list(loader.rows())).tolist()


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 4), st.booleans())
def test_drop_last_leaves_out_only_the_incomplete_step(
    num_rows: int, batch_size: int, world_size: int, shuffle: bool
) -> None:
    split, step_size = make_split(num_rows), batch_size * world_size
    if step_size > num_rows:
        with pytest.raises(InputError, match=r"must be at most the rows of the split \(\d+\) with `drop_last`"):
            BatchLoader(split, batch_size, world_size=world_size, drop_last=True)
        return
    loaders = [
        BatchLoader(split, batch_size, shuffle, rank=rank, world_size=world_size, drop_last=True)
        for rank in range(world_size)
    ]
    parts = [part.tolist() for loader in loaders for part in loader.rows()]
    assert all(len(part) == batch_size for part in parts)
    seen = [row for part in parts for row in part]
    assert len(set(seen)) == len(seen) == num_rows // step_size * step_size


def test_unshuffled_rows_keep_their_order() -> None:
    assert row_order(BatchLoader(make_split(10), 4)) == list(range(10))


def test_seed_and_epoch_decide_the_order() -> None:
    split = make_split(100)
    loader, same = BatchLoader(split, 8, shuffle=True, seed=3), BatchLoader(split, 8, shuffle=True, seed=3)
    first = row_order(loader)
    assert first == row_order(loader) == row_order(same)
    assert first != list(range(100))
    loader.set_epoch(1)
    second = row_order(loader)
    assert second != first
    other_seed = row_order(BatchLoader(split, 8, shuffle=True, seed=4))
    assert other_seed not in (first, second)  # seed 4 is not epoch 1 of seed 3


def test_the_order_of_a_step_does_not_depend_on_the_number_of_ranks() -> None:
    split = make_split(50)
    alone = [set(part.tolist()) for part in BatchLoader(split, 12, shuffle=True).rows()]
    ranks = [list(BatchLoader(split, 4, shuffle=True, rank=rank, world_size=3).rows()) for rank in range(3)]
    assert [set(torch.cat(parts).tolist()) for parts in zip(*ranks, strict=True)] == alone


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"batch_size": 0}, "`batch_size` (=0) must be at least 1"),
        ({"seed": -1}, "`seed` (=-1) must be at least 0"),
        ({"world_size": 0}, "`world_size` (=0) must be at least 1"),
        ({"rank": 2, "world_size": 2}, "`rank` (=2) must be at least 0 and below `world_size` (=2)"),
        ({"rank": -1}, "`rank` (=-1) must be at least 0 and below `world_size` (=1)"),
        (
            {"batch_size": 6, "drop_last": True},
            "`batch_size` (=6) times `world_size` (=1) must be at most the rows of the split (5) with",
        ),
    ],
)
def test_wrong_arguments(arguments: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        BatchLoader(make_split(5), **{"batch_size": 1, **arguments})


class Pooled(nn.Module):
    """An EmbeddingBagCollection with a loss, a minimal model for TorchRec's pipelines."""

    def __init__(self, device: str) -> None:
        super().__init__()
        configs = Schema("any", [Field("f", 7)], TASKS).embedding_configs(embedding_dim=4)
        self.embedding_bag_collection = EmbeddingBagCollection(tables=configs, device=torch.device(device))
        self.head = nn.Linear(4, 2)

    def logits(self, sparse_features: KeyedJaggedTensor) -> Tensor:
        return self.head(self.embedding_bag_collection(sparse_features).values())

    def forward(self, batch: MultiTaskBatch) -> tuple[Tensor, Tensor]:
        logits = self.logits(batch.sparse_features)
        return nn.functional.binary_cross_entropy_with_logits(logits, batch.labels), logits


def test_torchrecs_train_pipeline_accepts_the_batches() -> None:
    model = Pooled("cpu")
    start = [parameter.clone() for parameter in model.parameters()]
    pipeline = TrainPipelineBase(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.device("cpu"))
    batches = iter(BatchLoader(make_split(10), 4, shuffle=True))
    assert [len(pipeline.progress(batches)) for _ in range(3)] == [4, 4, 2]
    with pytest.raises(StopIteration):
        pipeline.progress(batches)
    assert all((old != new).any() for old, new in zip(start, model.parameters(), strict=True))


def check_every_row_passes_a_sharded_collection_once(num_rows: int, batch_size: int) -> None:
    split, rank, world_size = make_split(num_rows), dist.get_rank(), dist.get_world_size()
    model = DistributedModelParallel(Pooled("meta"), device=torch.device("cpu")).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pipeline = EvalPipelineSparseDist(model, optimizer, torch.device("cpu"))
    loader = BatchLoader(split, batch_size, rank=rank, world_size=world_size)
    batches = iter(loader)
    with torch.no_grad():
        logits = [pipeline.progress(batches) for _ in range(len(loader))]
    assert [len(part) for part in logits] == [batch_size, 1]  # the last row of rank 1 is padding
    rows = torch.cat(list(loader.rows())).tolist()
    rank_logits = dict(zip(rows, map(tuple, torch.cat(logits)[: len(rows)].tolist()), strict=True))
    gathered: list = [None] * world_size
    dist.all_gather_object(gathered, rank_logits)
    by_row = {row: row_logits for rank in gathered for row, row_logits in rank.items()}
    assert sum(map(len, gathered)) == len(by_row) == num_rows
    for row, row_logits in by_row.items():  # the id of a row is row % 7, and the id decides the logits
        assert row_logits == pytest.approx(by_row[row % 7])
    assert len(set(by_row.values())) == 7


def test_a_rank_without_rows_keeps_step_in_a_pipeline_of_two() -> None:
    processes.run(check_every_row_passes_a_sharded_collection_once, 2, 9, 4)
