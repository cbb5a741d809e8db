"""Runs with histories, from the settings on: trained, loaded, scored and exported."""

import json

import numpy as np
import polars as pl
import pytest
import torch

from tests.jobs import histories
from torchrec_mtl.__main__ import main
from torchrec_mtl.data import BatchLoader, read_split
from torchrec_mtl.inference.package import load_package
from torchrec_mtl.inference.package.load import arguments_of
from torchrec_mtl.jobs.loading import load_run
from torchrec_mtl.jobs.settings import Settings, describe, make_config
from torchrec_mtl.modules import HistoryConfig
from torchrec_mtl.systems import SYSTEMS
from torchrec_mtl.training.process_group import process_group

CPU = torch.device("cpu")
OPTIONS = ["embedding_dim=8", "training.batch_size=64", "training.table.optimizer=adagrad"]
OPTIONS += ["training.optimizer.learning_rate=0.01"]
HISTORIES = ["histories.candidates={last.items: item}", "histories.transformer_layers=1", "histories.max_length=5"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return histories.prepare(tmp_path_factory.mktemp("data") / "seen")


def train(data, folder, name, *more):
    command = ["train", "--dataset", str(data), "--models", "shared_bottom", "--output", str(folder), "--name", name]
    assert main([*command, *OPTIONS, *more]) == 0
    return folder / name


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return train(data, tmp_path_factory.mktemp("runs"), "run", *HISTORIES, "training.max_epochs=2")


def test_settings_are_kept_and_the_run_is_loaded_with_them(run, data):
    config = json.loads((run / "config.json").read_text())["shared_bottom"]
    assert config["histories"]["candidates"] == {"last.items": "item"}
    plain = load_run(run)
    assert plain.config.histories == HistoryConfig({"last.items": "item"}, 5, 1)
    assert plain.model.features.embedding_names == ["user", "tags", "item", "last.items", "liked"]
    assert plain.model.features.histories.fields.averaged == {"liked"}
    batch = next(iter(BatchLoader(read_split(data, "test"), 64)))
    with process_group(CPU):
        sharded = load_run(run, sharded=True)
        both = [each.model(batch.dense_features, batch.sparse_features) for each in (plain, sharded)]
    torch.testing.assert_close(*both)


def test_the_help_has_the_candidates_that_were_chosen():
    config = make_config(SYSTEMS["mmoe"], Settings(), ["histories.candidates={last.items: item}", "zch.fields=[user]"])
    lines = describe([config]).splitlines()
    assert any(line.startswith('  histories.candidates={"last.items": "item"} (mapping') for line in lines), lines
    assert any(line.startswith('  zch.fields=["user"] (list') for line in lines)


def test_a_finished_run_is_not_gone_on_with_other_histories(run, data, capsys):
    command = ["train", "--dataset", str(data), "--models", "shared_bottom", "--output", str(run.parent)]
    more = ["--name", "run", *OPTIONS, *HISTORIES[:2], "training.max_epochs=2"]
    assert main([*command, *more]) == 2
    assert "histories.max_length=5, now 50 is asked for" in capsys.readouterr().err


def test_the_order_of_ids_is_that_of_the_data(data):
    batch = next(iter(BatchLoader(read_split(data, "test"), 200)))
    history = batch.sparse_features.to_dict()["last.items"]
    found = [ids.tolist() for ids in history.values().split(history.lengths().tolist())]
    rows = pl.read_parquet(data / "test.parquet")["last.items"].to_list()
    assert found == [[0 if number == 99 else number for number in ids] for ids in rows]
    assert [] in found


def test_evaluate_and_predict_are_of_one_mind(run, data, tmp_path):
    rows = data / "test.parquet"
    assert main(["predict", str(run), "--input", str(rows), "--output", str(tmp_path / "scores.parquet")]) == 0
    assert main(["evaluate", str(run), "--dataset", str(data), "--output", str(tmp_path / "test.json")]) == 0
    found = pl.read_parquet(tmp_path / "scores.parquet")
    loaded, batch = load_run(run), next(iter(BatchLoader(read_split(data, "test"), 200)))
    expected = loaded.model(batch.dense_features, batch.sparse_features).sigmoid()
    np.testing.assert_allclose(found["click"].to_numpy(), expected[:, 0].detach().numpy(), rtol=1e-5)


@pytest.mark.verify
@pytest.mark.slow
def test_a_package_scores_as_the_run(run, data, tmp_path, capsys):
    command = ["export", str(run), "--dataset", str(data), "--output", str(tmp_path / "package")]
    assert main([*command, "--user-fields", "user"]) == 2
    assert "`user_keys` (=['user']) must be empty for a model with histories" in capsys.readouterr().err
    assert main([*command, "--table-type", "fp32"]) == 0
    package, loaded = load_package(tmp_path / "package"), load_run(run)
    for size in (1, 7, 200):
        batch = next(iter(BatchLoader(read_split(data, "test"), size)))
        expected = loaded.model(batch.dense_features, batch.sparse_features).sigmoid()
        found = package.run(arguments_of(batch, package.manifest.keys, False))
        torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["histories.candidates={lst: item}"], r"`histories.candidates` \(='lst'\) must be one of .*'last.items'"),
        (["histories.candidates={tags: item}"], r"\(='tags': 'item'\) must look up the table of its candidate"),
        (["histories.candidates={user: item}"], r"\(='user'\) must have a multi-valued field as a history"),
        (["histories.candidates={last.items: liked}"], r"\(='liked'\) must have a field of one id as a candidate"),
        (["histories.candidates={last.items: last.items}"], r"\(='last.items' of 'last.items'\) must not be a history"),
        ([HISTORIES[0], "zch.fields=[item]"], r"\(='last.items': 'item'\) must have a vocabulary"),
        ([*HISTORIES, "histories.num_heads=3"], r"`num_heads` \(=3\) must divide `embedding_dim` \(=8\)"),
        ([HISTORIES[0], "histories.max_length=0"], r"`max_length` \(=0\) must be at least 1"),
        (
            [HISTORIES[0], "training.tables.t_item.sharding=grid_shard"],
            r"`sharding` \(='grid_shard'\) of t_item must be one of",
        ),
    ],
)
def test_wrong_settings_are_one_sentence(data, tmp_path, capsys, options, message):
    command = ["train", "--dataset", str(data), "--models", "shared_bottom", "--output", str(tmp_path)]
    assert main([*command, *OPTIONS, *options]) == 2
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(capsys.readouterr().err)
