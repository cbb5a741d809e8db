"""Sharded tables on the CPU with kernels of our own: held to float64, resharded, and refused where there are none."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from fbgemm_gpu import split_table_batched_embeddings_ops_training as fbgemm
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.modules.embedding_configs import DataType

from tests import processes
from tests.training.pooled import HIGH, NAMES, RATE, Net, bags, expected, table_batched_modules, tables, train
from tests.training.test_distributed import whole_weights
from torchrec_mtl.errors import InputError
from torchrec_mtl.ops import library
from torchrec_mtl.training.checkpoint import Checkpointer, checkpoints
from torchrec_mtl.training.config import TableConfig, TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.process_group import process_group
from torchrec_mtl.training.sharding import plan_sharding
from torchrec_mtl.training.touched_rows import TouchedRows

CPU = torch.device("cpu")
ADAMS = ("sparse_adam", "rowwise_adam")
ROW_WISE = ("row_wise", "table_row_wise")
COLUMN_WISE = ("column_wise", "table_column_wise", "grid_shard")

pytestmark = pytest.mark.usefixtures("kernel")


@pytest.fixture
def _group() -> Iterator[None]:
    with process_group(CPU):
        yield


def twenty_steps(cases: list[tuple[str, str]]) -> None:
    """Lists that are averaged or have weights too, in turn."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    for number, (optimizer, sharding) in enumerate(cases):
        mean, weighted = number % 3 == 1 and sharding != "grid_shard", number % 3 == 2
        config = TrainingConfig(table=TableConfig(optimizer, RATE, sharding), seed=number)
        model, _ = distribute(Net(tables(mean, is_weighted=weighted)), config, CPU)
        weights = [w.clone() for name, w in whole_weights(model).items() if ".weight" in name]
        train(model, range(1, 21), rank, world_size, weighted)
        found = [w for name, w in whole_weights(model).items() if ".weight" in name]
        exact = expected(weights, optimizer, range(1, 21), mean, weighted)
        for after, should, before in zip(found, exact, weights, strict=True):
            torch.testing.assert_close(after.double(), should, rtol=1e-4, atol=1e-5, msg=f"{optimizer}, {sharding}")
            assert (after - before).abs().max() > 0.1


CASES = [(optimizer, sharding) for sharding in ("table_wise", *ROW_WISE) for optimizer in NAMES]
CASES += [(name, sharding) for sharding in COLUMN_WISE for name in NAMES if not name.startswith("rowwise")]


@pytest.mark.parametrize(("world_size", "cases"), [(1, CASES[: len(NAMES)]), (2, CASES)])
def test_twenty_steps_are_those_in_float64(world_size, cases):
    """Not where columns are split and a state is of a row: there it is one of each shard of it."""
    processes.run(twenty_steps, world_size, cases)


def _save(optimizer: str, sharding: str, folder: Path) -> None:
    config = TrainingConfig(table=TableConfig(optimizer, RATE, sharding))
    model, combined = distribute(Net(tables()), config, CPU)
    train(model, range(1, 6), dist.get_rank(), dist.get_world_size())
    combined.init_state()  # of what is not a table
    Checkpointer(folder, dist.new_group(backend="gloo")).save(5, model, combined, {}, None)


RESHARDED = [("sparse_adam", "row_wise"), ("sparse_adam", "column_wise"), ("rowwise_adam", "row_wise")]


@pytest.mark.parametrize(("optimizer", "sharding"), RESHARDED)
def test_two_ranks_then_one_by_table_is_a_straight_run(optimizer, sharding, tmp_path):
    """The number of steps goes on, which corrects the moments."""
    processes.run(_save, 2, optimizer, sharding, tmp_path)
    config = TrainingConfig(table=TableConfig(optimizer, RATE, "table_wise"))
    with process_group(CPU):
        (straight, _), (resumed, combined) = (distribute(Net(tables()), config, CPU) for _ in range(2))
        train(straight, range(1, 9))
        (saved,) = checkpoints(tmp_path)
        Checkpointer(tmp_path, dist.new_group(backend="gloo")).load(saved, resumed, combined)
        train(resumed, range(6, 9))
        for name, value in whole_weights(straight).items():
            torch.testing.assert_close(whole_weights(resumed)[name], value, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("_group")
@pytest.mark.parametrize("optimizer", ADAMS)
def test_a_step_is_a_backward_pass(optimizer):
    model, _ = distribute(Net(tables()), TrainingConfig(table=TableConfig(optimizer)), CPU)
    with torch.no_grad():
        model(bags(0))
    model(bags(0))
    assert {int(each.iter) for each in table_batched_modules(model)} == {0}
    train(model, range(1, 4))
    assert {int(each.iter) for each in table_batched_modules(model)} == {3}


@pytest.mark.usefixtures("_group")
def test_an_id_without_a_row_is_refused_before_any_update():
    model, _ = distribute(Net(tables()), TrainingConfig(table=TableConfig("sgd", RATE)), CPU)
    before = {name: w.clone() for name, w in whole_weights(model).items()}
    features = bags(0)
    features.values()[-1] = HIGH["f2"]
    with pytest.raises(RuntimeError, match=r"an id of key 4 \(=40\) must be from 0 to 39"):
        model(features).sum().backward()
    assert all(w.equal(before[name]) for name, w in whole_weights(model).items())


@pytest.mark.usefixtures("_group")
def test_without_the_kernels_fbgemms_run(monkeypatch):
    monkeypatch.setattr(library, "load", lambda: False)
    model, _ = distribute(Net(tables()), TrainingConfig(table=TableConfig("adagrad", RATE)), CPU)
    weights = [w.clone() for name, w in whole_weights(model).items() if ".weight" in name]
    assert not any(isinstance(each, TouchedRows) for each in table_batched_modules(model))
    train(model, range(1, 4))
    exact = expected(weights, "adagrad", range(1, 4), False, False)
    found = [w for name, w in whole_weights(model).items() if ".weight" in name]
    for after, should in zip(found, exact, strict=True):
        torch.testing.assert_close(after.double(), should, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("_group")
@pytest.mark.parametrize("optimizer", ADAMS)
def test_adam_says_what_it_needs_on_a_cpu(optimizer, monkeypatch):
    config = TrainingConfig(table=TableConfig(optimizer))
    half = Net(tables())
    half.tables = EmbeddingBagCollection(
        tables=[EmbeddingBagConfig(9, 4, "t0", DataType.FP16, ["f0"])], device=torch.device("meta")
    )
    with pytest.raises(InputError, match=rf"\(='{optimizer}'\) of t0 must be another for a table in FP16: on a CPU"):
        plan_sharding(half, config, CPU)
    monkeypatch.setattr(library, "load", lambda: False)
    with pytest.raises(InputError, match=rf"\(='{optimizer}'\) of t0 needs the kernels .*torchrec_mtl\.ops\.build"):
        plan_sharding(Net(tables()), config, CPU)


@pytest.mark.usefixtures("_group")
def test_tables_of_other_types_are_fbgemms():
    configs = [
        EmbeddingBagConfig(9, 4, "t0", DataType.FP16, ["f0"]),
        EmbeddingBagConfig(9, 4, "t1", DataType.FP32, ["f1"]),
    ]
    net = nn.ModuleDict({"tables": EmbeddingBagCollection(tables=configs, device=torch.device("meta"))})
    model, _ = distribute(net, TrainingConfig(table=TableConfig("adagrad")), CPU)
    found = {each.weights_precision.value: isinstance(each, TouchedRows) for each in table_batched_modules(model)}
    assert found == {"fp16": False, "fp32": True}


def test_weights_of_ids_that_learn_are_fbgemms():
    """Whose operator has their gradient, and steps the same tables."""
    at, on = fbgemm.EmbeddingLocation.HOST, fbgemm.ComputeDevice.CPU
    ours = TouchedRows([(9, 4, at, on)], learning_rate=0.5)
    (table,) = ours.tables
    table.copy_(torch.randn(9, 4))
    before, ids, offsets = table.clone(), torch.tensor([3, 8, 3]), torch.tensor([0, 2, 3])
    weights = torch.tensor([1.0, 2.0, -1.0], requires_grad=True)
    pooled = ours(ids, offsets, weights)
    torch.testing.assert_close(pooled, ours(ids, offsets, weights.detach()))
    pooled.sum().backward()
    assert weights.grad is not None
    torch.testing.assert_close(weights.grad, before[ids].sum(1))
    torch.testing.assert_close(table[8], before[8] - 0.5 * 2)
