"""Fields that share a table, tables of unequal dimensions, means, and first values: in every system, sharded or not."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.ao.quantization import quantize_dynamic
from torchrec import EmbeddingBagCollection

from tests import processes
from torchrec_mtl import MultiTaskTrain, TaskChain
from torchrec_mtl.data import SPLITS, BatchLoader, Field, MultiTaskBatch, Schema, read_split
from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.build import build_model
from torchrec_mtl.jobs.run_config import RunConfig
from torchrec_mtl.modules import FeatureArch
from torchrec_mtl.systems import SYSTEMS
from torchrec_mtl.training.checkpoint import Checkpointer, checkpoints, load_weights
from torchrec_mtl.training.config import SHARDINGS, OptimizerConfig, TableConfig, TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.process_group import process_group
from torchrec_mtl.training.sharding import plan_sharding

CPU = torch.device("cpu")
SHARED = Schema(
    name="shop",
    fields=[
        Field("item", 40),
        Field("recent", 40, multi_valued=True, shares="item"),
        Field("shop", 12),
        Field("visited", 12, multi_valued=True, shares="shop", pooling="mean"),
        Field("city", 9, init_std=0.5),
    ],
    tasks=TaskChain(["click", "cart"]),
    dense=["price"],
)
# the same columns, each with a table
ALONE = replace(SHARED, fields=[replace(field, shares=None) for field in SHARED.fields])
MIXED = replace(SHARED, fields=[replace(f, embedding_dim={"shop": 8, "city": 12}.get(f.name)) for f in SHARED.fields])
every_system = pytest.mark.parametrize("name", SYSTEMS)


def prepare(folder: Path, num_rows: int = 64) -> Path:
    """A prepared folder of random rows."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    click = generator.random(num_rows) < 0.5
    columns = {
        field.name: [
            generator.integers(field.num_embeddings, size=size).tolist()
            for size in generator.integers(5, size=num_rows)
        ]
        if field.multi_valued
        else generator.integers(field.num_embeddings, size=num_rows)
        for field in SHARED.fields
    }
    columns |= {
        "price": generator.normal(size=num_rows),
        "click": click,
        "cart": click & (generator.random(num_rows) < 0.5),
    }
    rows = pl.DataFrame(columns, schema_overrides={"click": pl.Float32, "cart": pl.Float32}, strict=False)
    for split in SPLITS:
        rows.write_parquet(folder / f"{split}.parquet")
    SHARED.save(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("shared") / "data")


def batch(data: Path, rank: int = 0, world_size: int = 1, seed: int = 0) -> MultiTaskBatch:
    loader = BatchLoader(
        read_split(data, "train"), 16 // world_size, shuffle=True, seed=seed, rank=rank, world_size=world_size
    )
    return next(iter(loader))


def build(name: str, schema: Schema, **arguments: object) -> nn.Module:
    system, tables = SYSTEMS[name], schema.embedding_configs(4)
    features = FeatureArch(
        EmbeddingBagCollection(tables=tables), dense_in_features=len(schema.dense), dense_arch_layer_sizes=(6, 4)
    )
    dropout = {"message_dropout": 0.0} if system.base == "bpcm" else {}
    return system.model(features, schema.tasks, **{**system.small, **system.model_args, **dropout, **arguments})


def dimension(name: str) -> dict[str, int]:
    return {"embedding_dim": 4} if SYSTEMS[name].base in ("bpcm", "tafe") else {}


@every_system
def test_a_shared_table_is_two_equal_tables_in_every_system(name: str, data: Path) -> None:
    torch.manual_seed(0)
    shared, alone = build(name, SHARED).eval(), build(name, ALONE).eval()
    state, owners = shared.state_dict(), {"t_recent": "t_item", "t_visited": "t_shop"}
    copies = {key: state[_of_owner(key, owners)] for key in alone.state_dict()}
    alone.load_state_dict(copies)
    rows = batch(data)
    logits = shared(rows.dense_features, rows.sparse_features)
    torch.testing.assert_close(logits, alone(rows.dense_features, rows.sparse_features))
    logits.sum().backward()
    alone(rows.dense_features, rows.sparse_features).sum().backward()
    gradients = {key: parameter.grad for key, parameter in alone.named_parameters()}
    for key, parameter in shared.named_parameters():
        expected = [grad for other, grad in gradients.items() if _of_owner(other, owners) == key and grad is not None]
        if expected:
            torch.testing.assert_close(parameter.grad, torch.stack(expected).sum(0), rtol=1e-4, atol=1e-6)


def _of_owner(key: str, owners: dict[str, str]) -> str:
    for table, owner in owners.items():
        key = key.replace(f".{table}.", f".{owner}.")
    return key


@every_system
def test_every_system_takes_tables_of_unequal_dimensions(name: str, data: Path) -> None:
    model, rows = build(name, MIXED, **dimension(name)).eval(), batch(data)
    arch = next(module for module in model.modules() if isinstance(module, FeatureArch))
    assert list(arch.embedding_names) == list(MIXED.field_names)
    assert list(arch.field_dims)[:5] == [4, 4, 8, 8, 12]
    logits = model(rows.dense_features, rows.sparse_features)
    assert logits.shape == (16, 2)
    int8 = quantize_dynamic(copy.deepcopy(model), {nn.Linear})(rows.dense_features, rows.sparse_features)
    assert (int8 - logits).abs().mean() < 0.2 * logits.std() + 1e-3


def test_lists_are_summed_or_averaged_as_the_field_says(data: Path) -> None:
    model, rows = build("shared_bottom", SHARED), batch(data)
    collection = model.features.embedding_bag_collection
    pooled = collection(rows.sparse_features).to_dict()
    for field, table in (("recent", "t_item"), ("visited", "t_shop"), ("shop", "t_shop")):
        weight, jagged = collection.embedding_bags[table].weight, rows.sparse_features[field]
        lists = np.split(jagged.values().numpy(), jagged.offsets().numpy()[1:-1])
        join = torch.sum if field == "recent" else torch.mean
        expected = [join(weight[torch.from_numpy(ids)], 0) if len(ids) else torch.zeros(4) for ids in lists]
        torch.testing.assert_close(pooled[field], torch.stack(expected))


def sharded_equals_whole(data: Path, folder: Path, shardings: list[str]) -> None:
    """Logits, steps and checkpoints of a sharded model with shared tables, beside the whole model."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    for sharding in shardings:
        config = TrainingConfig(
            optimizer=OptimizerConfig(0.01),
            table=TableConfig("sgd", 0.05, sharding=sharding),
        )

        def make() -> nn.Module:
            torch.manual_seed(0)
            system = SYSTEMS["mmoe"]
            return MultiTaskTrain(build("mmoe", MIXED), system.loss(MIXED.tasks, **system.loss_args))

        sharded, optimizer = distribute(make(), config, CPU)
        saver = Checkpointer(folder / sharding, dist.new_group(backend="gloo"))
        saver.save(0, sharded, optimizer, {}, None)
        whole = make()
        load_weights(whole, checkpoints(folder / sharding)[0])
        reference = torch.optim.SGD([p for n, p in whole.named_parameters() if "embedding_bags" in n], lr=0.05)
        others = torch.optim.AdamW(
            [p for n, p in whole.named_parameters() if "embedding_bags" not in n], lr=0.01, weight_decay=0.0
        )
        for step in range(3):
            own = [batch(data, each, world_size, step) for each in range(world_size)]
            optimizer.zero_grad()
            loss, (_, logits, _) = sharded(own[rank])
            loss.backward()
            found = [whole(each) for each in own]
            torch.testing.assert_close(
                logits,
                found[rank][1][1],
                rtol=1e-4,
                atol=1e-5,
                msg=lambda text, what=f"{sharding}, step {step}": f"{what}: {text}",
            )
            for each in (reference, others):
                each.zero_grad()
            torch.stack([each for each, _ in found]).mean().backward()
            for each in (optimizer, reference, others):
                each.step()
        saver.save(3, sharded, optimizer, {}, None)
        gathered = make()
        load_weights(gathered, checkpoints(folder / sharding)[-1])
        for name, value in gathered.state_dict().items():
            torch.testing.assert_close(value, whole.state_dict()[name], rtol=1e-4, atol=1e-5, msg=f"{sharding} {name}")


def test_sharded_on_one_rank(data: Path, tmp_path: Path) -> None:
    with process_group(CPU):
        sharded_equals_whole(data, tmp_path, ["table_wise"])


@pytest.mark.slow
def test_sharded_on_two_ranks(data: Path, tmp_path: Path) -> None:
    processes.run(
        sharded_equals_whole,
        2,
        data,
        tmp_path,
        [each for each in SHARDINGS if each not in ("data_parallel", "grid_shard")],
    )


def test_a_table_of_averages_is_not_sharded_as_a_grid() -> None:
    config = TrainingConfig(table=TableConfig(sharding="grid_shard"))
    with pytest.raises(
        InputError, match=r"`sharding` \(='grid_shard'\) of t_shop must be another: its lists are averaged"
    ):
        plan_sharding(build("mmoe", MIXED), config, CPU, world_size=2)
    plan_sharding(build("mmoe", ALONE.select(["item", "recent", "city"])), config, CPU, world_size=2)


def test_first_values_have_the_deviation_of_the_field_or_of_the_run() -> None:
    schema = replace(SHARED, fields=[replace(field, num_embeddings=5000) for field in SHARED.fields])
    config = RunConfig(SYSTEMS["shared_bottom"], embedding_dim=8, table_init=0.01, training=TrainingConfig())
    with process_group(CPU):
        model, _ = distribute(build_model(config, schema, CPU), config.training, CPU)
        weights = {key.split(".")[-2]: value for key, value in model.state_dict().items() if "embedding_bags" in key}
        deviations = {key: value.local_shards()[0].tensor.std().item() for key, value in weights.items()}
    assert deviations == pytest.approx({"t_item": 0.01, "t_shop": 0.01, "t_city": 0.5}, rel=0.05)


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "pooling differs": (
        lambda: replace(SHARED, fields=[*SHARED.fields, Field("seen", 12, True, shares="shop")]).embedding_configs(4),
        r"`pooling` of the fields \['visited', 'seen'\] must be the same, as they share a table",
    ),
    "of another size": (lambda: replace(SHARED, fields=[Field("a", 5), Field("b", 6, shares="a")]), "table of 6 ids"),
    "of no field": (lambda: replace(SHARED, fields=[Field("a", 5, shares="b")]), "field 'b' must be one of"),
    "of one that shares": (
        lambda: replace(SHARED, fields=[Field("a", 5), Field("b", 5, shares="a"), Field("c", 5, shares="b")]),
        "must be a field with a table of 5 ids",
    ),
    "a dimension of no table": (
        lambda: replace(SHARED, fields=[Field("a", 5), Field("b", 5, shares="a", embedding_dim=4)]),
        "has no `embedding_dim`",
    ),
    "a mean of weighted ids": (
        lambda: replace(SHARED, fields=[Field("a", 5, True, "w"), Field("b", 5, True, pooling="mean")]),
        r"`pooling` \(='mean'\) of field 'b' must be 'sum': PyTorch's tables can only sum where ids have weights",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_share_a_table_is_refused(case: str) -> None:
    make, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        make()


def test_fields_chosen_without_their_tables_owner_share_a_table_of_their_own() -> None:
    schema = replace(SHARED, fields=[*SHARED.fields, Field("seen", 40, True, shares="item")])
    chosen = schema.select(["seen", "recent", "city"])
    assert [(field.name, field.shares) for field in chosen.fields] == [
        ("seen", None),
        ("recent", "seen"),
        ("city", None),
    ]
    assert [table.feature_names for table in chosen.embedding_configs(4)] == [["seen", "recent"], ["city"]]
