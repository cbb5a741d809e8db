"""Tables for ids without a vocabulary, sharded: the same run on any number of ranks, and gone on with on any."""

import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import LFU_EvictionPolicy, ManagedCollisionCollection, MCHManagedCollisionModule

from tests import processes
from tests.jobs import funnel
from tests.training import ranks
from tests.training.test_checkpoint import check_histories, configure
from torchrec_mtl.data import BatchLoader, read_split
from torchrec_mtl.errors import InputError
from torchrec_mtl.modules import FeatureArch
from torchrec_mtl.modules.id_hash import ANY_ID, unhash_ids
from torchrec_mtl.modules.row_assignment import RowAssignment
from torchrec_mtl.modules.zero_collision import ZeroCollisionEmbeddingBagCollection
from torchrec_mtl.training.checkpoint import Checkpointer, checkpoints
from torchrec_mtl.training.config import TableConfig, TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.process_group import process_group
from torchrec_mtl.training.sharding import plan_sharding

WEIGHT = "embedding_bag_collection._embedding_module.embedding_bags.t_user.weight"
ARGUMENTS = {"eviction": "distance_lfu", "interval": 3, "buckets": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return funnel.prepare(tmp_path_factory.mktemp("data") / "tiny", train=321, valid=101)


def _local(model, name):
    value = model.state_dict()[name]
    return [shard.tensor for shard in value.local_shards()] if hasattr(value, "local_shards") else [value]


def _in_two_goes(data: Path, folder: Path) -> None:
    """Whole, and stopped after 8 of 22 steps, two after ids got rows, then gone on with."""
    _, whole = ranks.train(configure(), data, folder / "whole", zero_collision=ARGUMENTS)
    result, _ = ranks.train(configure(), data, folder / "parts", stop_after=8, zero_collision=ARGUMENTS)
    assert (result.stopped, result.step) == (True, 8)
    _, parts = ranks.train(configure(), data, folder / "parts", zero_collision=ARGUMENTS)
    for name in whole.state_dict():
        pairs = zip(_local(parts, name), _local(whole, name), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), name


def test_a_run_goes_on_bit_for_bit_on_two_ranks(data, tmp_path):
    processes.run(_in_two_goes, 2, data, tmp_path)
    check_histories(tmp_path)


def _go_on(data: Path, begun: Path, folder: Path) -> None:
    """Loads on these ranks and saves unchanged, then goes on."""
    model, optimizer = distribute(ranks.build(configure(), zero_collision=ARGUMENTS), configure(), ranks.CPU)
    group = dist.new_group(backend="gloo")
    Checkpointer(begun / "checkpoints", group).load(checkpoints(begun / "checkpoints")[-1], model, optimizer)
    Checkpointer(folder / "again", group).save(8, model, optimizer, {}, None)
    if dist.get_rank() == 0:
        shutil.copytree(begun, folder, dirs_exist_ok=True)
    dist.barrier()
    ranks.train(configure(), data, folder, zero_collision=ARGUMENTS)


def _train(data: Path, folder: Path, stop_after: int) -> None:
    ranks.train(configure(), data, folder, stop_after, zero_collision=ARGUMENTS)


@pytest.mark.slow
def test_ids_keep_their_rows_on_another_number_of_ranks(data, tmp_path):
    processes.run(_train, 1, data, tmp_path / "whole", 10**9)
    processes.run(_train, 2, data, tmp_path / "begun", 8)
    whole = ranks.history(tmp_path / "whole")
    (saved,) = checkpoints(tmp_path / "begun" / "checkpoints")[-1:]
    expected = ranks.contents(saved)
    assert sum(name.startswith("pending_ids") for name in expected) == 8  # four buckets of two tables
    for world_size in (1, 4):
        folder = tmp_path / str(world_size)
        processes.run(_go_on, world_size, data, tmp_path / "begun", folder)
        actual = ranks.contents(checkpoints(folder / "again")[-1])
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[name], value) for name, value in expected.items())
        ranks.check_alike(ranks.history(folder), whole)


@pytest.fixture
def _group():
    with process_group(ranks.CPU):
        yield


def _collection(num_rows=4, is_weighted=False, **arguments):
    """A table with one row for the ids of each of two buckets, and one that they share."""
    table = EmbeddingBagConfig(
        name="t_user", embedding_dim=4, num_embeddings=num_rows, feature_names=["user"], pooling=PoolingType.SUM
    )
    meta = torch.device("meta")
    arguments = {"eviction": "lru", "interval": 1, "buckets": 2, **arguments}
    return ZeroCollisionEmbeddingBagCollection([table], device=meta, is_weighted=is_weighted, **arguments)


def _users(hashed, weights=None):
    ids = unhash_ids(torch.tensor(hashed))
    return KeyedJaggedTensor.from_lengths_sync(["user"], ids, torch.ones(len(hashed), dtype=torch.int32), weights)


NUM_STATES = {"sgd": 0, "adagrad": 1, "rowwise_adagrad": 1, "sparse_adam": 2, "rowwise_adam": 2}


@pytest.mark.usefixtures("_group", "kernel")
@pytest.mark.parametrize("optimizer", NUM_STATES)
def test_a_row_that_changes_hands_starts_anew_with_its_optimizer_state(optimizer):
    """TorchRec's eviction fails on a CPU with row-wise Adagrad, and leaves the old id's state with other optimizers."""
    config = TrainingConfig(table=TableConfig(optimizer, 0.5))
    model, fused = distribute(FeatureArch(_collection()), config, ranks.CPU)
    weight, *state = (
        tensor.local_shards()[0].tensor if hasattr(tensor, "local_shards") else tensor
        for tensor in (model.state_dict()[WEIGHT], *fused.state_dict()["state"].get(WEIGHT, {}).values())
    )
    state = [each for each in state if each.numel() >= 4]
    assert len(state) == NUM_STATES[optimizer]
    nothing = torch.empty(1, 0)
    for _ in range(3):
        model(nothing, _users([100])).sum().backward()
    trained = weight[0].clone()
    assert all(each[0].abs().sum() > 0 for each in state)
    pooled = model(nothing, _users([102]))  # of the same bucket
    assert not weight[0].equal(trained)
    assert weight[0].abs().max() < 1
    assert pooled.equal(weight[:1])
    assert all(each[0].abs().sum() == 0 for each in state)


@pytest.mark.usefixtures("_group")
def test_weights_of_ids_are_kept():
    """TorchRec drops them on the way to the rank that has the row."""
    model, _ = distribute(FeatureArch(_collection(is_weighted=True)), TrainingConfig(), ranks.CPU)
    pooled = model(torch.empty(2, 0), _users([100, 100], torch.tensor([1.0, -2.0])))
    assert pooled[0].abs().sum() > 0
    assert pooled[1].equal(-2 * pooled[0])


@pytest.mark.usefixtures("_group")
def test_torchrecs_pipelines_find_both_collections(data):
    losses = []
    for pipeline_of in (TrainPipelineBase, TrainPipelineSparseDist):
        model, optimizer = distribute(ranks.build(configure(), zero_collision=ARGUMENTS), configure(), ranks.CPU)
        pipeline, batches = pipeline_of(model, optimizer, ranks.CPU), iter(BatchLoader(read_split(data, "train"), 64))
        losses.append([pipeline.progress(batches)[0].item() for _ in range(5)])
    assert losses[0] == losses[1]
    found = {type(module).__name__ for module in pipeline._pipelined_modules}
    assert found == {"ShardedTables", "ShardedZeroCollisionEmbeddingBagCollection"}


def _where_ids_are(num_ids: int) -> None:
    model, _ = distribute(FeatureArch(_collection(128, buckets=4)), TrainingConfig(), ranks.CPU)
    ids = torch.arange(num_ids)
    model(torch.empty(num_ids, 0), KeyedJaggedTensor.from_lengths_sync(["user"], ids, torch.ones_like(ids)))
    (rows,) = (module for module in model.modules() if isinstance(module, RowAssignment))
    here = rows.hashed_ids[rows.hashed_ids != ANY_ID]
    assert set((here % 4).tolist()) == set(rows.buckets_here) == [{0, 1}, {2, 3}][dist.get_rank()]
    assert 0.3 * num_ids < len(here) < 0.7 * num_ids


def test_small_ids_are_spread_over_the_ranks():
    """TorchRec sends ids to ranks by their size, so that small ones meet on the first."""
    processes.run(_where_ids_are, 2, 60)


def _torchrec_collection():
    config = EmbeddingBagConfig(name="t_user", embedding_dim=4, num_embeddings=10, feature_names=["user"])
    rows = {"t_user": MCHManagedCollisionModule(10, ranks.CPU, LFU_EvictionPolicy(), 1)}
    tables = EmbeddingBagCollection(tables=[config], device=torch.device("meta"))
    return ManagedCollisionEmbeddingBagCollection(tables, ManagedCollisionCollection(rows, [config]))


@pytest.mark.parametrize(
    ("collection", "settings", "message"),
    [
        (_collection, {"table": TableConfig("adam")}, r"`optimizer` \(='adam'\) of t_user must be another, such as"),
        (
            _collection,
            {"tables": {"t_user": {"sharding": "column_wise"}}},
            r"`sharding` \(='column_wise'\) of t_user must be 'auto' or 'row_wise'",
        ),
        (_collection, {}, r"the number of processes \(=3\) must divide `buckets` \(=2\) of t_user"),
        (_torchrec_collection, {}, r"managed collisions .* must be a `ZeroCollisionEmbeddingBagCollection`"),
    ],
)
def test_what_cannot_be_sharded(collection, settings, message):
    with pytest.raises(InputError, match=message):
        plan_sharding(FeatureArch(collection()), TrainingConfig(**settings), ranks.CPU, 3, 3)
