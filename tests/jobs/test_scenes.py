"""Runs whose scenes are measured apart, and scale the embeddings."""

import json
from dataclasses import replace

import pytest
import torch

from tests import processes
from tests.jobs import funnel
from torchrec_mtl.__main__ import main
from torchrec_mtl.data import BatchLoader, Field, Schema, read_split
from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.build import build_model
from torchrec_mtl.jobs.known_tasks import check_buildable
from torchrec_mtl.jobs.loading import load_run
from torchrec_mtl.jobs.settings import PAPER, make_config
from torchrec_mtl.systems import SYSTEMS

OPTIONS = ["--name", "run", "--models", "single_task,mmoe", "training.batch_size=500", "scene=item", "embedding_dim=4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return funnel.prepare(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The folder of a run, its models with gates."""
    folder = tmp_path_factory.mktemp("scenes")
    assert main(["train", "--dataset", str(data), "--output", str(folder), *OPTIONS, "scene_gate=true"]) == 0
    return folder / "run"


def of_scenes(folder, model):
    rows = json.loads((folder / "results.json").read_text())
    return {
        (row["scene"], row["task"], row["space"], row["metric"]): row["value"]
        for row in rows
        if row["model"] == model and "scene" in row
    }


@pytest.mark.parametrize("model", ["single_task", "mmoe"])
def test_a_scene_is_measured_as_evaluate_measures_its_rows(trained, data, tmp_path, model):
    found, output = of_scenes(trained, model), tmp_path / "figures.json"
    command = ["evaluate", str(trained), "--model", model, "--dataset", str(data), "--by", "item"]
    assert main([*command, "--output", str(output)]) == 0
    figures = [row for row in json.loads(output.read_text()) if row["slice"] is not None]
    expected = {(int(r["slice"]), r["task"], r["space"], r["metric"]): r["value"] for r in figures}
    assert {scene for scene, *_ in found} == set(range(10))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == (value if value is None else pytest.approx(value, abs=1e-6)), key


def test_the_table_shows_each_scene_below_the_whole(trained):
    table = (trained / "table.txt").read_text()
    found = of_scenes(trained, "mmoe")
    whole, *scenes = table.split("\nitem=")
    assert "test AUC, all impressions" in whole
    assert [int(scene.partition("\n")[0]) for scene in scenes] == list(range(10))
    for number, scene in enumerate(scenes):
        assert f"{found[number, 'click', 'impressions', 'auc']:.4f}" in scene
        assert "Single-Task" in scene


def test_a_loaded_run_has_its_gate(trained, data):
    model = load_run(trained, "mmoe").model
    assert model.features.domain_gate is not None
    rows = next(iter(BatchLoader(read_split(data, "test"), 64)))
    before = model(rows.dense_features, rows.sparse_features)
    torch.nn.init.zeros_(model.features.domain_gate.unit.output.weight)
    assert not torch.allclose(model(rows.dense_features, rows.sparse_features), before)


def test_two_ranks_measure_the_scenes_of_all(data, tmp_path):
    options = ["--dataset", str(data), "--output", str(tmp_path), *OPTIONS, "scene_gate=true", "training.max_epochs=1"]
    processes.run_program("torchrec_mtl", "train", *options, ranks=2)
    found = of_scenes(tmp_path / "run", "mmoe")
    items = read_split(data, "test")
    counts = torch.zeros(10)
    for rows in BatchLoader(items, 501):
        counts += rows.sparse_features["item"].values().bincount(minlength=10)
    for scene, count in enumerate(counts.tolist()):
        assert found[scene, "click", "impressions", "num_rows"] == count


def test_a_run_that_resumes_keeps_the_scenes(trained, data, capsys):
    before = (trained / "results.json").read_bytes()
    (trained / "results.json").unlink()
    command = ["train", "--dataset", str(data), "--output", str(trained.parent), *OPTIONS, "scene_gate=true"]
    assert main(command) == 0
    assert (trained / "results.json").read_bytes() == before
    assert main([*command[:-1], "scene_gate=false"]) == 2
    assert "scene_gate=True, now False is asked for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["scene=itm"], r"`scene` \(='itm'\) must be one of \['user', 'item', 'tags', 'many'\]; the nearest is 'item'"),
        (["scene=tags"], r"`scene` \(='tags'\) must be a field with one id in a row"),
        (["scene=many"], r"`scene` \(='many'\) must be a field of at most 100 ids, not 101"),
    ],
)
def test_a_wrong_scene_raises_before_training(options, sentence):
    schema = replace(funnel.SCHEMA, fields=[*funnel.SCHEMA.fields, Field("many", 101)])
    with pytest.raises(InputError, match=sentence):
        build_model(make_config(SYSTEMS["mmoe"], PAPER, options), schema, torch.device("meta"))


def test_a_gate_needs_a_scene():
    with pytest.raises(InputError, match=r"`scene_gate` \(=True\) must come with the field of the `scene`"):
        make_config(SYSTEMS["mmoe"], PAPER, ["scene_gate=true"])


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_takes_a_gate(name):
    config = make_config(SYSTEMS[name], PAPER, ["scene=page", "scene_gate=true"])
    check_buildable(config, "/not/here/yet", None)
    fields = [Field("page", 3), Field("user", 9)]
    built = build_model(config, Schema("pages", fields, funnel.SCHEMA.tasks), torch.device("meta"))
    assert any("domain_gate" in name for name, _ in built.named_parameters())
