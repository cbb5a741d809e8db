"""Sharded equals unsharded: every model, every sharding type, on one, two and four processes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.modules.feature_processor_ import PositionWeightedModuleCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection

from tests import processes
from tests.support import MODELS, NUM_DENSE, TASKS, batch, take, train_model
from torchrec_mtl import MultiTaskTrain
from torchrec_mtl.errors import InputError
from torchrec_mtl.losses import CrossEntropyLoss
from torchrec_mtl.models import MMoE
from torchrec_mtl.modules import DynamicSelector, FeatureArch, advance_schedules
from torchrec_mtl.training.checkpoint import Checkpointer, checkpoints, load_weights
from torchrec_mtl.training.config import SHARDINGS, OptimizerConfig, TableConfig, TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.plan_report import describe_plan
from torchrec_mtl.training.process_group import process_group
from torchrec_mtl.training.sharding import plan_sharding

SIZE = 16
CPU = torch.device("cpu")
OPTIMIZERS = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "adam": torch.optim.Adam}
ROW_WISE = ("row_wise", "table_row_wise")
COLUMN_WISE = ("column_wise", "table_column_wise", "grid_shard")


def save(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> Path:
    Checkpointer(folder, dist.new_group(backend="gloo")).save(0, model, optimizer, {}, None)
    return checkpoints(folder)[0]


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """On every rank, put together without a checkpoint, which takes ten times as long."""
    found = {}
    for name, value in model.state_dict().items():
        if isinstance(value, ShardedTensor):
            found[name] = torch.empty(value.size())
            value.gather(0, found[name] if dist.get_rank() == 0 else None)
            dist.broadcast(found[name], 0)
        else:
            found[name] = value
    return found


def equals_unsharded(make: Callable[[], nn.Module], config: TrainingConfig, num_steps: int, folder: Path) -> None:
    """Forward, gradients, and parameters after some steps, starting from the same weights."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    sharded, optimizer = distribute(make(), config, CPU)
    whole = make()
    whole.load_state_dict(whole_weights(sharded))

    collections = [m for m in whole.modules() if isinstance(m, EmbeddingBagCollection)]
    of_tables = {id(p) for collection in collections for p in collection.parameters()}
    dense = [p for p in whole.parameters() if id(p) not in of_tables]
    tables = [p for p in whole.parameters() if id(p) in of_tables]
    table = config.table
    options = {"eps": 1e-8} if table.optimizer == "adagrad" else {}
    reference = [
        torch.optim.AdamW(dense, lr=config.optimizer.learning_rate, weight_decay=0.0),
        OPTIMIZERS[table.optimizer](tables, lr=table.learning_rate, **options),
    ]
    for step in range(num_steps):
        rows = batch(SIZE, seed=step, weighted=step % 2 == 1)
        own = take(rows, range(rank, SIZE, world_size))
        optimizer.zero_grad()
        loss, (_, logits, _) = sharded(own)
        loss.backward()
        for each in reference:
            each.zero_grad()
        expected_loss, (_, expected, _) = whole(rows)
        expected_loss.backward()
        close = 1e-6 if step == 0 else 5e-5  # weights are equal in the first step, then but for rounding that grows
        torch.testing.assert_close(logits, expected[rank::world_size], rtol=1e-4, atol=close)
        gradients = {n: p.grad for n, p in sharded.named_parameters() if p.grad is not None}
        for parameter_name, parameter in whole.named_parameters():
            if id(parameter) not in of_tables:
                torch.testing.assert_close(gradients[parameter_name], parameter.grad, rtol=1e-4, atol=close)
        optimizer.step()
        for each in reference:
            each.step()
        for stepped in (sharded, whole):
            advance_schedules(stepped)

    gathered = make()
    load_weights(gathered, save(sharded, optimizer, folder / "end"))
    expected_state = whole.state_dict()
    for parameter_name, actual in gathered.state_dict().items():
        expected = expected_state[parameter_name]
        torch.testing.assert_close(
            actual, expected, rtol=1e-4, atol=5e-5, msg=lambda text, n=parameter_name: f"{n}: {text}"
        )
    for selector in (m for m in gathered.modules() if isinstance(m, DynamicSelector)):
        assert selector.step == num_steps


def build(name: str) -> nn.Module:
    """Without dropout, whose masks are a rank's own, and with tables of unequal dimensions."""
    options = {"bpcm": {"message_dropout": 0.0, "embedding_dim": 4}, "tafe": {"embedding_dim": 4}}.get(name, {})
    # tables of a multiple of four columns, which is what sharded tables have
    return train_model(name, embedding_dims=(4, 8, 4, 4), **options)


def all_models(table_optimizers: list[str], folder: Path) -> None:
    for table_optimizer in table_optimizers:
        for name in MODELS:
            torch.manual_seed(0)
            config = TrainingConfig(optimizer=OptimizerConfig(0.01), table=TableConfig(table_optimizer, 0.05))
            equals_unsharded(lambda name=name: build(name), config, 5, folder / f"{name}-{table_optimizer}")


@pytest.mark.slow
def test_every_model_sharded_equals_unsharded(tmp_path):
    """SGD and Adagrad on tables that are split, Adam on replicated ones."""
    processes.run(all_models, 2, ["sgd", "adagrad", "adam"], tmp_path)


def shared_tables() -> EmbeddingBagCollection:
    """Unequal in rows and columns; ``t1`` is of two features, ``f0`` is looked up in two tables."""
    sizes = [("t0", 11, 8, ["f0"]), ("t1", 7, 16, ["f1", "f2"]), ("t2", 40, 4, ["f0"]), ("t3", 13, 12, ["f3"])]
    configs = [
        EmbeddingBagConfig(name=name, num_embeddings=rows, embedding_dim=dim, feature_names=features)
        for name, rows, dim, features in sizes
    ]
    return EmbeddingBagCollection(tables=configs)


def build_on_shared_tables() -> nn.Module:
    features = FeatureArch(shared_tables(), dense_in_features=NUM_DENSE, dense_arch_layer_sizes=(6, 4))
    model = MMoE(features, TASKS, expert_layer_sizes=(8, 6), tower_layer_sizes=(4,))
    return MultiTaskTrain(model, CrossEntropyLoss(TASKS))


def all_sharding_types(cases: list[tuple[str, str]], folder: Path) -> None:
    for sharding, table_optimizer in cases:
        torch.manual_seed(0)
        table = TableConfig(table_optimizer, 0.05, sharding)
        config = TrainingConfig(optimizer=OptimizerConfig(0.01), table=table)
        own = folder / f"{sharding}-{table_optimizer}"
        equals_unsharded(build_on_shared_tables, config, 20, own)
    each_its_own = {"t0": "row_wise", "t1": "column_wise", "t2": "data_parallel", "t3": "table_wise"}
    tables = {name: {"sharding": sharding} for name, sharding in each_its_own.items()}
    config = TrainingConfig(optimizer=OptimizerConfig(0.01), table=TableConfig("sgd", 0.05), tables=tables)
    equals_unsharded(build_on_shared_tables, config, 20, folder / "each-its-own")
    if dist.get_world_size() > 1:
        model = build_on_shared_tables()
        plan = plan_sharding(model, config, CPU)
        (of_tables,) = plan.plan.values()
        assert {name: sharding.sharding_type for name, sharding in of_tables.items()} == each_its_own


CASES = [(sharding, "sgd") for sharding in SHARDINGS]
CASES += [(sharding, "adagrad") for sharding in ("auto", "table_wise", "data_parallel", *ROW_WISE)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "local_world_size"), [(1, 1), (2, 2), pytest.param(4, 2, marks=pytest.mark.verify)]
)
def test_every_sharding_type_equals_unsharded(tmp_path, world_size, local_world_size):
    """Empty bags, unequal tables, shared features; four ranks as two nodes of two, which row-wise types tell apart."""
    processes.run(all_sharding_types, world_size, CASES, tmp_path, local_world_size=local_world_size)


def test_the_plan_is_told_with_the_memory_of_each_rank():
    """Counted by hand: 4 bytes a weight, and a row-wise state of 4 bytes a row."""
    model = build_on_shared_tables()
    config = TrainingConfig(table=TableConfig("rowwise_adagrad", sharding="row_wise"))
    with process_group(CPU):
        plan = plan_sharding(model, config, CPU, world_size=2, local_world_size=2)
    told = describe_plan(plan, model, config, 2)
    rows = {"t0": (6, 5, 8), "t1": (4, 3, 16), "t2": (20, 20, 4), "t3": (7, 6, 12)}
    first, second = (sum(4 * r[rank] * r[2] + 4 * r[rank] for r in rows.values()) for rank in (0, 1))
    assert told.splitlines()[0] == "sharding over 2 ranks"
    assert told.splitlines()[-1].endswith(f"MB a rank: {first / 1e6:.1f}, {second / 1e6:.1f}")
    for name in rows:
        assert any(name in line and "row_wise" in line and "rank 0,1" in line for line in told.splitlines())


def test_a_model_for_sixteen_gpus_is_planned_without_one():
    model = build_on_shared_tables()
    plan = plan_sharding(model, TrainingConfig(), torch.device("cuda"), world_size=16, local_world_size=8)
    (of_tables,) = plan.plan.values()
    assert set(of_tables) == {"t0", "t1", "t2", "t3"}
    assert not any(sharding.sharding_type == "data_parallel" for sharding in of_tables.values())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tables": {"t9": {"sharding": "row_wise"}}}, r"`tables` \(='t9'\) must be of the model's: \['t0', "),
        ({"tables": {"t0": {"rate": 1.0}}}, r"`tables` of t0: 'rate' must be one of \['optimizer'"),
        ({"tables": {"t0": {"sharding": "rows"}}}, r"`sharding` \(='rows'\) must be one of \['auto'"),
        ({"table": TableConfig("adam", sharding="row_wise")}, r"`sharding` \(='row_wise'\) of t0 must be 'auto' with"),
    ],
)
def test_a_wrong_sharding_is_told(options, sentence):
    with process_group(CPU), pytest.raises(InputError, match=sentence):
        plan_sharding(build_on_shared_tables(), TrainingConfig(**{"table": TableConfig("sgd"), **options}), CPU)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("kind", ["row_wise", "table_row_wise", "grid_shard"])
def test_a_table_with_too_few_rows_for_the_ranks_is_told_before_any_has_them(kind, device):
    """Seven rows are 2 + 2 + 2 + 1; of five, the last of four ranks would have none, and fail while the others wait."""
    model, ranks = train_model("mmoe"), {"world_size": 4, "local_world_size": 4}
    config = TrainingConfig(table=TableConfig("sgd"), tables={"t1": {"sharding": kind}})
    (of_tables,) = plan_sharding(model, config, torch.device(device), **ranks).plan.values()
    assert of_tables["t1"].sharding_type == kind
    config = TrainingConfig(table=TableConfig("sgd"), tables={"t2": {"sharding": kind}})
    sentence = rf"`sharding` \(='{kind}'\) of t2 must be another: its 5 rows leave one of 4 ranks without any"
    with pytest.raises(InputError, match=sentence):
        plan_sharding(model, config, torch.device(device), **ranks)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.verify
def test_the_planner_leaves_no_rank_without_rows(device):
    model = train_model("mmoe")
    for world_size in range(2, 17):
        ranks = {"world_size": world_size, "local_world_size": world_size}
        (of_tables,) = plan_sharding(model, TrainingConfig(), torch.device(device), **ranks).plan.values()
        for name, sharding in of_tables.items():
            assert all(min(shard.shard_sizes) > 0 for shard in sharding.sharding_spec.shards), (world_size, name)


def test_processors_of_features_with_sharded_tables_are_told():
    """Weights of positions would stay as they began: TorchRec sends ids and weights to the tables, and nothing back."""
    tables = [EmbeddingBagConfig(name="t0", embedding_dim=4, num_embeddings=9, feature_names=["f0"])]
    collection = EmbeddingBagCollection(tables=tables, is_weighted=True)
    weights = PositionWeightedModuleCollection({"f0": 4})
    model = MMoE(FeatureProcessedEmbeddingBagCollection(collection, weights), TASKS)
    with process_group(CPU):
        with pytest.raises(InputError, match=r"`sharding` \(='auto'\) of t0 must be 'data_parallel': processors of"):
            plan_sharding(model, TrainingConfig(), CPU)
        assert not plan_sharding(model, TrainingConfig(table=TableConfig("adam")), CPU).plan


def test_a_dimension_that_fbgemm_has_not_is_told_unless_all_tables_are_replicated():
    tables = [EmbeddingBagConfig(name="t0", embedding_dim=18, num_embeddings=5, feature_names=["f0"])]
    model = MMoE(EmbeddingBagCollection(tables=tables, device=torch.device("meta")), TASKS)
    sentence = r"`embedding_dim` \(=18\) of t0 must be a multiple of 4 in fbgemm's operators; tables that are all"
    with process_group(CPU):
        with pytest.raises(InputError, match=sentence):
            plan_sharding(model, TrainingConfig(), CPU)
        assert not plan_sharding(model, TrainingConfig(table=TableConfig("adam")), CPU).plan
