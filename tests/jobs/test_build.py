"""Runs with fields whose ids have no vocabulary, from the settings on."""

import json
from dataclasses import replace

import polars as pl
import pytest
import torch

from tests.jobs import funnel
from torchrec_mtl.__main__ import main
from torchrec_mtl.data import ANY_ID, BatchLoader, Field, build_once, check_batch, read_split
from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.build import build_model
from torchrec_mtl.jobs.loading import load_run
from torchrec_mtl.jobs.run_config import RunConfig
from torchrec_mtl.modules import ZeroCollisionEmbeddingBagCollection
from torchrec_mtl.systems import SYSTEMS
from torchrec_mtl.training.config import TrainingConfig, ZchConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.process_group import process_group

CPU = torch.device("cpu")
SCHEMA = replace(funnel.SCHEMA, fields=[Field("user", ANY_ID), *funnel.SCHEMA.fields[1:]])


def prepare(directory):
    """Users with ids as they come: of any size."""

    def build(folder):
        for seed, (split, num_rows) in enumerate(funnel.ROWS.items()):
            columns = funnel.columns(num_rows, seed)
            columns["user"] = [ANY_ID - 1 - user * 10**17 for user in columns["user"]]
            pl.DataFrame(columns).write_parquet(folder / f"{split}.parquet")
        return SCHEMA

    return build_once(directory, build)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("data") / "tiny")


OPTIONS = ["training.table.optimizer=rowwise_adagrad", "embedding_dim=4", "training.batch_size=512"]


def test_a_run_on_ids_of_any_size(data, tmp_path, capsys):
    zch = ["zch.fields=[user, item]", "zch.num_rows=64", "zch.num_rows_of={user: 96}", "zch.eviction=lru"]
    zch.append("zch.interval=1")
    command = ["train", "--dataset", str(data), "--models", "shared_bottom", "--output", str(tmp_path), "--name", "run"]
    assert main([*command, *OPTIONS, *zch]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())["shared_bottom"]
    assert config["zch"] == {**config["zch"], "fields": ["user", "item"], "num_rows": 64, "eviction": "lru"}
    batch = next(iter(BatchLoader(read_split(data, "test"), 64)))
    plain = load_run(tmp_path / "run")
    assert plain.config.zch == ZchConfig(["user", "item"], 64, {"user": 96}, "lru", 1)
    with process_group(CPU):
        both = plain, load_run(tmp_path / "run", sharded=True)
        of_both = [loaded.model(batch.dense_features, batch.sparse_features) for loaded in both]
    torch.testing.assert_close(*of_both)
    (tables,) = (module for module in plain.model.modules() if isinstance(module, ZeroCollisionEmbeddingBagCollection))
    assert tables.open_slots()["t_user"] < 64  # of the rows that are not shared
    capsys.readouterr()
    assert main([*command, *OPTIONS, *zch[:3], "zch.eviction=lru"]) == 2
    assert "zch.interval=1, now 10 is asked for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["zch.num_rows=100"], r"`num_rows` \(=100\) of t_user must be a multiple of `buckets`"),
        (["zch.fields=[usr]"], r"`zch.fields` \(='usr'\) must be one of .*; the nearest is 'user'"),
        (["zch.fields=[user]", "zch.num_rows=100"], r"`num_rows` \(=100\) of user must be a multiple of `buckets`"),
        (["zch.fields=[user]", "zch.num_rows_of={item: 64}"], r"`num_rows_of` \(='item'\) must be of `fields`"),
        (["zch.fields=[user]", "training.table.optimizer=adam"], r"`optimizer` \(='adam'\) of t_user must be"),
    ],
)
def test_wrong_settings(data, tmp_path, capsys, options, message):
    command = ["train", "--dataset", str(data), "--models", "shared_bottom", "--output", str(tmp_path)]
    assert main([*command, *OPTIONS, *options]) == 2
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(capsys.readouterr().err)


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_model_trains_on_ids_without_a_vocabulary(data, name):
    system = SYSTEMS[name]
    zch = ZchConfig(fields=["user", "tags"], num_rows=640, num_rows_of={"tags": 96}, interval=1)
    arguments = {**system.model_args, **system.small}
    config = RunConfig(system, 4, model_args=arguments, loss_args=system.loss_args, zch=zch)
    with process_group(CPU):
        model, optimizer = distribute(build_model(config, SCHEMA, CPU), TrainingConfig(), CPU)
        batch = next(iter(BatchLoader(read_split(data, "train"), 64)))
        loss, _ = model(batch)
        loss.backward()
        optimizer.step()
    tables = [rows for path, rows in model.state_dict().items() if path.endswith("t_user.hashed_ids")]
    seen = batch.sparse_features["user"].values().unique().numel()
    assert [(rows.local_shards()[0].tensor != ANY_ID).sum() for rows in tables] == [seen] * len(tables)
    assert tables


def test_all_fields_without_a_vocabulary():
    config = RunConfig(SYSTEMS["shared_bottom"], 4, zch=ZchConfig(fields=SCHEMA.field_names, num_rows=64))
    features = build_model(config, SCHEMA, CPU).model.features
    assert isinstance(features.embedding_bag_collection, ZeroCollisionEmbeddingBagCollection)
    assert features.zero_collision is None
    assert features.layout.num_embeddings == dict.fromkeys(SCHEMA.field_names, ANY_ID)


def test_the_largest_integer_is_no_id(data):
    """TorchRec marks free rows with it."""
    config = RunConfig(SYSTEMS["shared_bottom"], 4, zch=ZchConfig(fields=["user"], num_rows=64))
    model = build_model(config, SCHEMA, torch.device("meta"))
    batch = next(iter(BatchLoader(read_split(data, "train"), 8)))
    batch.sparse_features.values()[3] = ANY_ID
    for expected in (SCHEMA, model):
        with pytest.raises(InputError, match=r"'user', row 3 .*: id \(=9223372036854775807\) must be .* below"):
            check_batch(batch, expected, SCHEMA.tasks)


def test_a_declared_field_of_any_ids_is_trained_on_by_itself(tmp_path, monkeypatch):
    """With the rows that it declares, or another number of the run's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = {"user": [f"u{n % 50}" for n in range(900)], "item": range(900), "key": range(900), "click": [0, 1, 0] * 300}
    pl.DataFrame(rows).write_csv(tmp_path / "raw.csv")
    fields = 'AnyId("user", num_rows=96), AnyId("item"), AnyId("seen", column="item", shares="item")'
    declared = f'Table("shop", "{tmp_path}/raw.csv", TaskChain(["click"]), [{fields}], split=ByHash("key"))'
    (tmp_path / "shop.py").write_text(f"from torchrec_mtl import AnyId, ByHash, Table, TaskChain\nSHOP = {declared}\n")
    own_rows = ["zch.fields=[user]", "zch.num_rows_of={user: 128}"]
    for name, further, user_rows in (("as_declared", [], 96), ("as_set", own_rows, 128)):
        zch = ["zch.num_rows=640", "zch.interval=1", *further]
        command = ["train", "--dataset", str(tmp_path / "shop.py"), "--models", "shared_bottom", "--name", name]
        assert main([*command, "--output", str(tmp_path), *OPTIONS, *zch, "training.max_epochs=1"]) == 0, name
        model = load_run(tmp_path / name).model
        tables = {path.split(".")[-2]: rows for path, rows in model.state_dict().items() if "hashed_ids" in path}
        assert {name: len(rows) for name, rows in tables.items()} == {"t_user": user_rows, "t_item": 640}
        assert 25 < (tables["t_user"] != ANY_ID).sum() <= 50  # a bucket has few rows, and may be full
    new = pl.DataFrame({"user": ["u7", None, "new"], "item": ["4", "-1", None]})
    new.write_parquet(tmp_path / "new.parquet")
    scored = ["predict", str(tmp_path / "as_declared"), "--input", str(tmp_path / "new.parquet")]
    assert main([*scored, "--output", str(tmp_path / "scores.parquet")]) == 0
    assert pl.read_parquet(tmp_path / "scores.parquet").height == 3
