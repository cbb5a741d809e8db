"""Files of a run that were cut, emptied or replaced, and data without a class: a sentence each, and JSON throughout."""

import json
import shutil

import polars as pl
import pytest
import torch

from tests.jobs import funnel
from torchrec_mtl.__main__ import main
from torchrec_mtl.data import SPLITS, Field, Schema, read_split
from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.build import build_to_train
from torchrec_mtl.jobs.settings import Settings, make_config
from torchrec_mtl.systems import SYSTEMS
from torchrec_mtl.tasks import TaskChain

OPTIONS = ["training.batch_size=512", "training.max_epochs=1", "embedding_dim=4"]


def train(data, output, models="shared_bottom", *more):
    options = ["--dataset", str(data), "--output", str(output), "--name", "run", "--models", models]
    return main(["train", *options, *OPTIONS, *more])


def sentence(capsys):
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.splitlines()[-1]


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """A run that ended before its results were written."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(funnel.prepare(folder / "tiny"), folder) == 0
    (folder / "run" / "results.json").unlink()
    return folder


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"shared_bottom": null}', '{"result": []}'])
@pytest.mark.parametrize("name", ["config.json", "shared_bottom/report.json"])
def test_a_damaged_file_of_a_run_is_one_sentence(unfinished, tmp_path, capsys, name, content):
    shutil.copytree(unfinished, tmp_path / "copy")
    file = tmp_path / "copy" / "run" / name
    file.write_text(content)
    assert train(tmp_path / "copy" / "tiny", tmp_path / "copy") == 2
    assert str(file) in sentence(capsys)


@pytest.mark.parametrize("line", ["[]", "null", "3", '{"value": 1}', '{"step": null}', "{"])
def test_a_damaged_line_of_metrics_is_one_sentence(unfinished, tmp_path, capsys, line):
    shutil.copytree(unfinished, tmp_path / "copy")
    (tmp_path / "copy" / "run" / "shared_bottom" / "report.json").unlink()
    file = tmp_path / "copy" / "run" / "shared_bottom" / "metrics.jsonl"
    file.write_text(line + "\n" + file.read_text())
    assert train(tmp_path / "copy" / "tiny", tmp_path / "copy") == 2
    assert f"{file}: line 1 must be a JSON object with `step`" in sentence(capsys)


def without_positives(data, split, task="purchase"):
    file = data / f"{split}.parquet"
    pl.read_parquet(file).with_columns(pl.lit(0).alias(task)).write_parquet(file)
    return file


@pytest.mark.parametrize("split", SPLITS)
def test_a_task_without_positives_is_named_first_and_every_file_is_json(tmp_path, capsys, split):
    data = funnel.prepare(tmp_path / "tiny")
    file = without_positives(data, split)
    assert train(data, tmp_path) == 0
    said = capsys.readouterr().out
    warning = f"warning: {file}: task 'purchase' has no positive row in {split}"
    assert 0 <= said.index(warning) < said.index("validation AUC")

    def refuse(constant):
        raise ValueError(constant)

    files = [*(tmp_path / "run").rglob("*.json"), *(tmp_path / "run").rglob("*.jsonl")]
    assert {file.name for file in files} == {
        "config.json",
        "schema.json",
        "results.json",
        "report.json",
        "manifest.json",
        "metrics.jsonl",
    }
    for file in files:
        for text in file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]:
            json.loads(text, parse_constant=refuse)
    (tmp_path / "run" / "results.json").unlink()
    assert train(data, tmp_path) == 0  # undefined values are read back


@pytest.mark.parametrize("missing", ["purchase", "cart"])
def test_every_system_can_start_without_positives_of_a_task(tmp_path, missing):
    data = funnel.prepare(tmp_path / "tiny")
    for task in ("cart", "purchase") if missing == "cart" else ("purchase",):
        without_positives(data, "train", task)
    split = read_split(data, "train")
    for system in SYSTEMS.values():
        built = build_to_train(make_config(system, Settings({"embedding_dim": 4})), split, torch.device("cpu"))
        dense = [value for value in built.parameters() if value.device.type == "cpu"]
        assert all(value.isfinite().all() for value in dense), system.name


@pytest.mark.parametrize("system", ["shared_bottom", "esmm"])
def test_the_other_tasks_are_trained(tmp_path, system):
    data = funnel.prepare(tmp_path / "tiny")
    without_positives(data, "train")
    fast = ["training.optimizer.learning_rate=0.01", "training.table.learning_rate=0.05"]
    assert train(data, tmp_path, system, *fast, "training.batch_size=64", "training.max_epochs=2") == 0
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    aucs = {row["task"]: row["value"] for row in rows if (row["metric"], row["space"]) == ("auc", "impressions")}
    assert min(aucs["click"], aucs["cart"]) > 0.6


def test_fields_may_have_dots_in_their_names(tmp_path):
    def renamed(folder):
        for split in SPLITS:
            file = folder / f"{split}.parquet"
            pl.read_parquet(file).rename({"user": "user.id"}).write_parquet(file)

    data = funnel.prepare(tmp_path / "tiny")
    renamed(data)
    (data / "schema.json").write_text((data / "schema.json").read_text().replace('"user"', '"user.id"'))
    assert train(data, tmp_path, "tafe,shared_bottom") == 0
    with pytest.raises(InputError, match=r"field 'user\.id' must not become table 't_user_id', as another field"):
        Schema("s", [Field("user.id", 2), Field("user_id", 2)], TaskChain(["click"]))


def test_a_table_of_2_to_the_40_rows_is_one_sentence(tmp_path, capsys):
    data = funnel.prepare(tmp_path / "tiny")
    text = (data / "schema.json").read_text().replace('"num_embeddings": 20', f'"num_embeddings": {2**40}')
    (data / "schema.json").write_text(text)
    assert len(read_split(data, "train")) == funnel.ROWS["train"]
    assert train(data, tmp_path) == 2
    assert f"`num_embeddings` (={2**40}) of field 'user' must be at most 2147483647" in sentence(capsys)
