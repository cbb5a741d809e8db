"""What a training job's table and results say of named metrics; by hand, nothing is trained."""

import json
import math
from dataclasses import replace

import pytest
import torch

from tests.foreign_metric import KNOWN
from tests.jobs import funnel
from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.results import ModelReport, read_report, save_report, write_report
from torchrec_mtl.jobs.settings import PAPER, make_config
from torchrec_mtl.metrics import METRICS, CalibrationCurve, measured_as
from torchrec_mtl.systems import SYSTEMS
from torchrec_mtl.training.loop import TrainingResult

TASKS = funnel.SCHEMA.tasks


def rows(**values):
    return [
        {"task": task, "space": space, "metric": metric, "value": value}
        for task in TASKS
        for space in TASKS.spaces(task)
        for name, value in values.items()
        for metric in (measured_as(name, KNOWN[name], space) if name in KNOWN else [name])
    ]


def report(model, stopped_by="auc", **values):
    config = make_config(SYSTEMS[model], PAPER, [f"training.early_stopping_metric={stopped_by}"])
    history = [{"step": step, "split": "valid", **row} for step in (1, 2) for row in rows(**values)]
    result = TrainingResult(history, best_step=2, best_score=0.123, seconds=1.0, num_rows=99)
    curve = CalibrationCurve(torch.tensor([0.1, 0.5]), torch.tensor([0.2, 0.4]), torch.tensor([5, 5]))
    return ModelReport(config, result, 7, rows(**values), dict.fromkeys(TASKS, curve))


ABOVE = "share_above_previous"
SINGLE_TASK = {"auc": 0.6, "log_loss": 0.5, "average_precision": 0.31, "gauc": 0.55, ABOVE: 0.1}
TAFE = {"auc": 0.65, "log_loss": 0.4, "average_precision": 0.42, "gauc": math.nan, ABOVE: 0.2}
REPORTS = [report("single_task", **SINGLE_TASK), report("tafe", "log_loss", **TAFE)]


def test_the_table_shows_the_named_metrics_in_order(tmp_path):
    write_report(REPORTS, funnel.SCHEMA, tmp_path, ["average_precision", "auc", "gauc"], KNOWN)
    table = (tmp_path / "table.txt").read_text()
    headers = [line.split("  ")[0] for line in table.splitlines() if line.startswith("test ")]
    after = "where the step before happened"
    assert headers == [
        header
        for title in ("average precision", "AUC", "GAUC")
        for header in (
            f"test {title}, all impressions", f"test conditional {title}, {after}", f"test marginal {title}, {after}",
        )
    ]  # fmt: skip
    assert table.count("samples/s") == table.count("parameters") == 1
    tafe = [line.split() for line in table.splitlines() if line.startswith("TAFE")]
    precision, auc, none = ["0.4200"], ["0.6500", "+50.0%"], ["-"]
    assert tafe[:3] == [["TAFE", *precision * 3, "99", "7", "dependence"], *[["TAFE", *precision * 2]] * 2]
    assert tafe[3:6] == [["TAFE", *auc * 3], *[["TAFE", *auc * 2]] * 2]
    assert tafe[6:9] == [["TAFE", *none * 3], *[["TAFE", *none * 2]] * 2]
    assert tafe[9:] == [["TAFE", "0.2000", "0.2000"]]  # share above the previous step
    assert table.rstrip().endswith("(AUC - .5) / (AUC of Single-Task - .5) - 1")
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"


def test_without_auc_there_is_no_word_of_rela_impr(tmp_path):
    write_report(REPORTS, funnel.SCHEMA, tmp_path, ["log_loss"])
    table = (tmp_path / "table.txt").read_text()
    assert "0.4000" in table
    assert "%" not in table
    assert "RelaImpr" not in table


def test_the_picture_shows_the_first_metric(tmp_path):
    pictures = []
    for metrics in (["auc", "log_loss"], ["log_loss", "auc"], ["gauc"]):  # the last is not measured on validation
        write_report(REPORTS, funnel.SCHEMA, tmp_path, metrics)
        pictures.append((tmp_path / "report.png").read_bytes())
    assert len(set(pictures)) == 3


def test_results_have_all_that_was_measured_and_gains_of_auc_alone(tmp_path):
    write_report(REPORTS, funnel.SCHEMA, tmp_path, ["log_loss"])
    results = json.loads((tmp_path / "results.json").read_text())
    of_task = {
        row["metric"]: row["value"]
        for row in results
        if (row["model"], row["task"], row["space"]) == ("tafe", "cart", "after click")
    }
    assert of_task == {
        "log_loss": 0.4,
        ABOVE: 0.2,
        **{
            f"{score}_{name}": value
            for score in ("conditional", "marginal")
            for name, value in {
                "auc": 0.65,
                "average_precision": 0.42,
                "gauc": None,
                "rela_impr": pytest.approx(0.5),
                "gain": pytest.approx(1 / 12),
            }.items()
        },
    }
    best = {(row["model"], row["metric"]): row["value"] for row in results if row["split"] == "valid"}
    assert best == {("single_task", "mean_auc"): 0.123, ("tafe", "mean_log_loss"): 0.123}


@pytest.mark.parametrize(
    ("schema", "metric", "sentence"),
    [
        (funnel.SCHEMA, "average_precision", r"`metrics` \(='average_precision'\) must be one of \['auc'"),
        (replace(funnel.SCHEMA, group=None), "gauc", r"`metrics` \(='gauc'\) must be a metric without groups"),
    ],
)
def test_a_metric_that_was_not_measured_is_told_before_anything_is_written(tmp_path, schema, metric, sentence):
    with pytest.raises(InputError, match=sentence):
        write_report(REPORTS, schema, tmp_path, ["auc", metric], METRICS)
    assert not list(tmp_path.iterdir())


def test_a_kept_report_is_read_as_it_was(tmp_path):
    (kept, _), file = REPORTS, tmp_path / "report.json"
    save_report(kept, file)
    read = read_report(kept.config, file)
    assert (read.result, read.test, read.config) == (kept.result, kept.test, kept.config)
    assert read.value("marginal_auc", "cart", "after click") == 0.6
