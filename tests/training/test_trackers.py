"""MLflow itself, on its files, gets what ``metrics.jsonl`` and TensorBoard get; a resumed run goes on in all three."""

import json
import math

import pytest

from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.train_arguments import named_trackers
from torchrec_mtl.training.monitor import Monitor
from torchrec_mtl.training.trackers import TRACKERS, MLflow, TensorBoard, scalar_name

SETTINGS = {"model_args.width": 8, "training.seed": 0, **{f"training.tables.t{n}.sharding": "auto" for n in range(120)}}


def rows(step):
    spaces = [("click", "impressions"), ("buy, or: not", "after click")]
    measured = [{"split": "valid", "task": t, "space": s, "metric": "auc", "value": step / 100} for t, s in spaces]
    nothing = {"split": "valid", "task": "buy, or: not", "space": "after click", "metric": "pr_auc", "value": math.nan}
    return [{"split": "train", "metric": "loss", "value": 1 / step}, *measured, nothing]


def record(directory, start, steps, trackers, finished):
    monitor = Monitor(directory, trackers, SETTINGS, model="tafe", seed=0, dataset="shop")
    monitor.start(start)
    for step in steps:
        monitor.scalars(step, rows(step))
    monitor.close(finished)


def json_lines(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {(scalar_name(row), row["step"]): row["value"] for row in lines}


def events(directory):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    found = accumulator(str(directory))
    found.Reload()
    return {(tag, each.step): each.value for tag in found.Tags()["scalars"] for each in found.Scalars(tag)}


def test_a_resumed_run_goes_on_in_json_lines_and_tensorboard(tmp_path):
    record(tmp_path, 0, [10, 20, 30], [TensorBoard()], finished=False)
    record(tmp_path, 20, [30, 40], [TensorBoard()], finished=True)
    expected = {(scalar_name(row), step): row["value"] for step in (10, 20, 30, 40) for row in rows(step)}
    lines = json_lines(tmp_path)
    assert {key: value for key, value in lines.items() if value is not None} == {
        key: value for key, value in expected.items() if not math.isnan(value)
    }
    assert lines.keys() == expected.keys()
    assert events(tmp_path) == pytest.approx(expected, rel=1e-6, nan_ok=True)


def test_a_tracker_of_ones_own_may_be_the_only_other_one(tmp_path):
    record(tmp_path, 0, [10], [], finished=True)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_mlflow_has_one_run_with_every_scalar_and_setting(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    folder = tmp_path / "my 'run'" / "tafe"
    record(folder, 0, [10, 20, 30], [MLflow()], finished=False)
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'shop'")
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["KILLED"]
    record(folder, 20, [30, 40], [MLflow()], finished=True)
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "my 'run'/tafe")
    assert run.data.params == {path: str(value) for path, value in SETTINGS.items()}
    assert {name: run.data.tags[name] for name in ("model", "seed", "folder")} == {
        "model": "tafe",
        "seed": "0",
        "folder": str(folder),
    }
    found = {
        key: [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics
    }
    assert found["train/loss"] == [(step, 1 / step) for step in (10, 20, 30, 40)]  # each once
    assert found["valid/auc/click/impressions"] == [(step, step / 100) for step in (10, 20, 30, 40)]
    assert found["valid/auc/buy_ or_ not/after click"] == [(step, step / 100) for step in (10, 20, 30, 40)]
    assert math.isnan(run.data.metrics["valid/pr_auc/buy_ or_ not/after click"])


def test_what_mlflow_cannot_record_in_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://there")
    with pytest.raises(InputError, match="`MLFLOW_TRACKING_URI` must name what MLflow can record in: "):
        record(tmp_path, 0, [10], [MLflow()], finished=True)


def test_trackers_are_named_and_checked():
    assert named_trackers("") == []
    assert named_trackers("tensorboard") == [TRACKERS["tensorboard"]]
    with pytest.raises(InputError, match=r"tracker 'pathlib:Path' must have the method `start` of `Tracker`"):
        named_trackers("pathlib:Path")
    with pytest.raises(InputError, match=r"tracker 'tensorbord' must be one of"):
        named_trackers("tensorbord")
