"""Sharded tables on the CPU with kernels of our own: held to float64, resharded, and looked up at once on one rank."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
from torchrec.modules.embedding_configs import DataType

from tests import processes
from tests.training.test_distributed import whole_weights
from torchrec_mtl.errors import InputError
from torchrec_mtl.ops import library
from torchrec_mtl.ops.embedding_bag import reference
from torchrec_mtl.training.checkpoint import Checkpointer, checkpoints
from torchrec_mtl.training.config import TableConfig, TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.process_group import process_group
from torchrec_mtl.training.sharded_tables import ShardedTables
from torchrec_mtl.training.sharding import plan_sharding
from torchrec_mtl.training.table_gate import TableGate
from torchrec_mtl.training.touched_rows import TouchedRows

CPU = torch.device("cpu")
NAMES = {  # of the operation, by the name in the settings
    "sgd": "sgd",
    "adagrad": "adagrad",
    "rowwise_adagrad": "rowwise_adagrad",
    "sparse_adam": "adam",
    "rowwise_adam": "rowwise_adam",
}
ADAMS = ("sparse_adam", "rowwise_adam")
ROW_WISE = ("row_wise", "table_row_wise")
COLUMN_WISE = ("column_wise", "table_column_wise", "grid_shard")
SIZE, RATE = 24, 0.05
KEYS = ["f3", "f1", "f0", "other", "f2"]  # not in the order of the tables
HIGH = {"f0": 11, "f1": 40, "f2": 40, "f3": 13, "other": 10**9}
FIELDS = [("f0", 0), ("f1", 1), ("f2", 1), ("f0", 2), ("f3", 3)]  # and their tables

pytestmark = pytest.mark.usefixtures("kernel")


@pytest.fixture
def _group() -> Iterator[None]:
    with process_group(CPU):
        yield


def tables(mean: bool = False, **options) -> EmbeddingBagCollection:
    """Unequal in rows and columns; ``t1`` is of two features, ``f0`` is looked up in two tables."""
    pooling = PoolingType.MEAN if mean else PoolingType.SUM
    sizes = [("t0", 11, 8, ["f0"]), ("t1", 40, 16, ["f1", "f2"]), ("t2", 11, 4, ["f0"]), ("t3", 13, 12, ["f3"])]
    configs = [
        EmbeddingBagConfig(rows, dim, name, feature_names=features, pooling=pooling)
        for name, rows, dim, features in sizes
    ]
    return EmbeddingBagCollection(tables=configs, device=torch.device("meta"), **options)


class Net(nn.Module):
    """All features side by side, by name."""

    def __init__(self, collection: EmbeddingBagCollection) -> None:
        super().__init__()
        self.tables, self.scale = collection, nn.Parameter(torch.ones(()))

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        pooled = self.tables(features)
        names = [f"f0@t{table}" if key == "f0" else key for key, table in FIELDS]
        return torch.cat([pooled[name] for name in names], 1)


def bags(seed: int, rows: slice = slice(None), weighted: bool = False) -> KeyedJaggedTensor:
    """0 to 3 ids a feature, often the same."""
    generator = torch.Generator().manual_seed(seed)
    ids, lengths, weights = [], [], []
    for key in KEYS:
        of_key = torch.randint(0, 4, (SIZE,), generator=generator)
        values = torch.randint(0, min(HIGH[key], 15), (int(of_key.sum()),), generator=generator)
        parts = list(values.split(of_key.tolist()))[rows]
        ids += parts
        lengths.append(of_key[rows])
        weights += list(torch.rand(len(values), generator=generator).split(of_key.tolist()))[rows]
    values = torch.cat(weights) if weighted else None
    return KeyedJaggedTensor.from_lengths_sync(KEYS, torch.cat(ids), torch.cat(lengths), values)


def gradients(seed: int, width: int) -> Tensor:
    return torch.randn(SIZE, width, generator=torch.Generator().manual_seed(seed))


def train(model: nn.Module, steps: range, rank: int = 0, world_size: int = 1, weighted: bool = False) -> None:
    for step in steps:
        own = slice(rank, None, world_size)
        pooled = model(bags(step, own, weighted))
        (pooled * gradients(step, pooled.shape[1])[own]).sum().mul(world_size).backward()


def expected(weights: list[Tensor], optimizer: str, steps: range, mean: bool, weighted: bool) -> list[Tensor]:
    """The tables after the steps, by the definition, in float64."""
    weights = [w.double() for w in weights]
    whole, of_row = [torch.zeros_like(w) for w in weights], [torch.zeros_like(w[:, 0]) for w in weights]
    states = {"sgd": (), "adagrad": (whole,), "rowwise_adagrad": (of_row,)}
    states |= {"sparse_adam": (whole, copy.deepcopy(whole)), "rowwise_adam": (whole, of_row)}
    key_of_field, table_of_field = [KEYS.index(key) for key, _ in FIELDS], [table for _, table in FIELDS]
    for step in steps:
        features = bags(step, weighted=weighted)
        reference.update(
            weights,
            states[optimizer],
            table_of_field,
            key_of_field,
            [mean] * len(FIELDS),
            features.values(),
            features.offsets(),
            SIZE,
            gradients(step, sum(weights[table].shape[1] for table in table_of_field)).double(),
            NAMES[optimizer],
            learning_rate=RATE,
            step=step,
            weights=features.weights().double() if weighted else None,
        )
    return weights


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


def _table_batched(model: nn.Module) -> list[TouchedRows]:
    collections = [m for m in model.modules() if isinstance(m, ShardedTables)]
    return [kernel.emb_module for each in collections for lookup in each._lookups for kernel in lookup._emb_modules]


@pytest.mark.usefixtures("_group")
@pytest.mark.parametrize("optimizer", ADAMS)
def test_a_step_is_a_backward_pass(optimizer):
    model, _ = distribute(Net(tables()), TrainingConfig(table=TableConfig(optimizer)), CPU)
    with torch.no_grad():
        model(bags(0))
    model(bags(0))
    assert {int(each.iter) for each in _table_batched(model)} == {0}
    train(model, range(1, 4))
    assert {int(each.iter) for each in _table_batched(model)} == {3}


def _torchrecs_way(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, ShardedTables):
            assert module._parts
            module._parts = []


@pytest.mark.usefixtures("_group")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("sharding", ["auto", "table_wise"])
def test_one_rank_looks_up_at_once_what_torchrec_would(sharding, mean, weighted):
    """To the last bit, tables of several optimizers and learning rates, which are several groups, included."""
    several = {"t1": {"optimizer": "sgd"}, "t3": {"learning_rate": 0.5}}
    config = TrainingConfig(table=TableConfig("adagrad", RATE, sharding), tables=several)
    at_once, usual = (distribute(Net(tables(mean, is_weighted=weighted)), config, CPU)[0] for _ in range(2))
    _torchrecs_way(usual)
    assert len(_table_batched(usual)) == 3
    with torch.no_grad():
        assert at_once(bags(0, weighted=weighted)).equal(usual(bags(0, weighted=weighted)))
    for model in (at_once, usual):
        train(model, range(1, 4), weighted=weighted)
    for name, value in whole_weights(usual).items():
        assert whole_weights(at_once)[name].equal(value)
    features = bags(0, weighted=weighted)
    assert at_once.module.tables(features).keys() == usual.module.tables(features).keys()


@pytest.mark.usefixtures("_group")
def test_a_gate_keeps_the_backward_pass_out():
    model, _ = distribute(Net(tables()), TrainingConfig(table=TableConfig("sgd", RATE)), CPU)
    gate, before = TableGate(model), {name: w.clone() for name, w in whole_weights(model).items()}
    with gate.held():
        loss = model(bags(0)).sum()
    loss.backward()
    assert all(w.equal(before[name]) for name, w in whole_weights(model).items())
    gate.open()
    assert not any(w.equal(before[name]) for name, w in whole_weights(model).items() if ".weight" in name)


@pytest.mark.usefixtures("_group")
def test_a_tracker_of_lookups_is_called():
    model, _ = distribute(Net(tables()), TrainingConfig(table=TableConfig("sgd", RATE)), CPU)
    found: list[KeyedJaggedTensor] = []
    model.module.tables.register_post_lookup_tracker_fn(lambda features, *_: found.append(features))
    at_once = model(bags(0))
    assert len(found) == 1
    model.module.tables.post_lookup_tracker_fn = None
    assert model(bags(0)).equal(at_once)
    assert len(found) == 1


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
def test_a_key_that_is_missing_is_told_by_torchrec():
    model, _ = distribute(Net(tables()), TrainingConfig(table=TableConfig("sgd", RATE)), CPU)
    features = KeyedJaggedTensor.from_lengths_sync(["f0"], torch.tensor([0]), torch.tensor([1]))
    with pytest.raises(Exception, match="f1"):
        model(features)


@pytest.mark.usefixtures("_group")
def test_without_the_kernels_fbgemms_run(monkeypatch):
    monkeypatch.setattr(library, "load", lambda: False)
    model, _ = distribute(Net(tables()), TrainingConfig(table=TableConfig("adagrad", RATE)), CPU)
    weights = [w.clone() for name, w in whole_weights(model).items() if ".weight" in name]
    assert not any(isinstance(each, TouchedRows) for each in _table_batched(model))
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
    found = {each.weights_precision.value: isinstance(each, TouchedRows) for each in _table_batched(model)}
    assert found == {"fp16": False, "fp32": True}
