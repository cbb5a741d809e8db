"""A trained run comes back with the weights and settings that it was trained with."""

import json
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from tests import processes
from tests.jobs import funnel
from torchrec_mtl import load_run
from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs import train
from torchrec_mtl.systems import SYSTEMS

OWN = replace(SYSTEMS["mmoe"], name="own", title="Own")
OPTIONS = ["training.batch_size=500", "mmoe_dselect_k.model_args.gate.gamma=0.5", "tafe.model_args.schedule=run"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loading")
    data = funnel.prepare(folder / "tiny")
    models = ["--models", ",".join(SYSTEMS)]
    assert train.main(["--dataset", str(data), "--output", str(folder), "--name", "run", *models, *OPTIONS]) == 0
    return folder


def settings(folder):
    return json.loads((folder / "run" / "config.json").read_text())


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_every_system_comes_back(name, trained):
    """The settings are those that were saved, and the scores those that the run measured."""
    run = load_run(trained / "run", name)
    saved = {key: value for key, value in settings(trained)[name].items() if key != "data"}
    assert json.loads(json.dumps(run.config.as_dict())) == saved
    rows = pl.read_parquet(trained / "tiny" / "test.parquet")
    found = run.predictor().predict(rows).marginal
    measured = {
        row["task"]: row["value"]
        for row in json.loads((trained / "run" / "results.json").read_text())
        if (row["model"], row["metric"], row["space"]) == (name, "auc", "impressions")
    }
    for task, of_task in zip(run.schema.tasks, found.T, strict=True):
        assert roc_auc_score(rows[task], of_task) == pytest.approx(measured[task], abs=1e-9)


def test_the_folder_of_a_model_names_it(trained):
    rows = pl.read_parquet(trained / "tiny" / "test.parquet")
    by_folder, by_name = load_run(trained / "run" / "mmoe"), load_run(trained / "run", "mmoe")
    np.testing.assert_array_equal(*(each.predictor().predict(rows).marginal for each in (by_folder, by_name)))
    with pytest.raises(InputError, match=r"has several models, so `model` must name one of \['single_task'"):
        load_run(trained / "run")
    with pytest.raises(InputError, match=r"model 'tafee' must be one of .* the nearest is 'tafe'"):
        load_run(trained / "run", "tafee")
    with pytest.raises(InputError, match=r"must be the folder of a run, but holds no config\.json"):
        load_run(trained / "tiny")


def copied(trained, tmp_path, **changes):
    """A copy of one model's run, with other settings in its file."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copytree(trained / "run" / "data", run / "data")
    shutil.copytree(trained / "run" / "mmoe", run / "mmoe")
    changed = {**settings(trained)["mmoe"], **changes}
    (run / "config.json").write_text(json.dumps({"mmoe": changed}))
    return run


@pytest.mark.parametrize("kind", ["system", "loss"])
def test_a_name_in_a_file_is_never_imported(kind, trained, tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text("raise SystemExit('the file was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    run = copied(trained, tmp_path, **{kind: "planted:CLASS"})
    with pytest.raises(InputError, match="a name in a file is never imported"):
        load_run(run)


def test_a_system_of_ones_own_is_given_again(trained, tmp_path):
    data = trained / "tiny"
    models = ["--models", "tests.jobs.test_loading:OWN", "training.batch_size=500"]
    assert train.main(["--dataset", str(data), "--output", str(tmp_path), "--name", "run", *models]) == 0
    with pytest.raises(InputError, match=r"`system` \(='.*'\) must be given"):
        load_run(tmp_path / "run")
    with pytest.raises(InputError, match="must be that of the run"):
        load_run(tmp_path / "run", system=SYSTEMS["mmoe"])
    run = load_run(tmp_path / "run", system=OWN)
    assert run.config.system is OWN


def test_an_older_or_damaged_run_is_one_sentence(trained, tmp_path):
    run = copied(trained, tmp_path)
    shutil.rmtree(run / "data")
    with pytest.raises(InputError, match="is of an older version"):
        load_run(run)
    shutil.copytree(trained / "run" / "data", run / "data")
    (run / "data" / "schema.json").write_text("{}")
    with pytest.raises(InputError, match=r"schema\.json: key 'version' is missing"):
        load_run(run)
    shutil.copyfile(trained / "run" / "data" / "schema.json", run / "data" / "schema.json")
    shutil.rmtree(run / "mmoe" / "checkpoints")
    with pytest.raises(InputError, match="must hold a checkpoint with a score"):
        load_run(run)


@pytest.mark.slow
def test_any_number_of_ranks_loads_what_any_number_trained(trained, tmp_path):
    """Trained sharded and loaded plain, and the reverse."""
    data, rows = trained / "tiny", trained / "tiny" / "test.parquet"
    settings = ["embedding_dim=16", "training.table.sharding=row_wise", "training.table.optimizer=adagrad"]
    options = ["--dataset", str(data), "--output", str(tmp_path), "--models", "mmoe", "training.batch_size=500"]
    options += settings
    for ranks in (0, 2):
        processes.run_program("torchrec_mtl", "train", "--name", f"on_{ranks}", *options, ranks=ranks)
    scores = {}
    for trained_on in (0, 2):
        for scored_on in (0, 2):
            output = tmp_path / f"{trained_on}-{scored_on}.parquet"
            arguments = [str(tmp_path / f"on_{trained_on}"), "--input", str(rows), "--output", str(output)]
            processes.run_program("torchrec_mtl", "predict", *arguments, ranks=scored_on)
            scores[trained_on, scored_on] = pl.read_parquet(output).to_numpy()
    for found in scores.values():
        np.testing.assert_allclose(found, scores[0, 0], rtol=1e-3)
    for trained_on in (0, 2):
        np.testing.assert_allclose(scores[trained_on, 2], scores[trained_on, 0], rtol=1e-6)
