"""The results of a training job: a table, ``results.json`` and a picture."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from torchrec_mtl.data import Schema
from torchrec_mtl.errors import InputError
from torchrec_mtl.files import read_json, to_json, write_whole
from torchrec_mtl.jobs.run_config import RunConfig, loss_name
from torchrec_mtl.metrics import (
    AUCS,
    METRICS,
    CalibrationCurve,
    Metric,
    find_metric,
    gain,
    measured_as,
    rela_impr,
)
from torchrec_mtl.metrics.metric import spaces_of
from torchrec_mtl.tasks import TaskForest
from torchrec_mtl.training.evaluation import Measurements
from torchrec_mtl.training.result import TrainingResult, with_nan


@dataclass(frozen=True)
class ModelReport:
    """The run of one model.

    Args:
        config: settings of the run.
        result: result of the training.
        num_parameters: number of parameters of the whole model, tables included.
        test: test rows ``{task, space, metric, value}``; empty if the test split was not read.
        curves: calibration curves on the test split, by task.
        scenes: test rows ``{scene, task, space, metric, value}`` of each scene, if the run has a field of scenes.
    """

    config: RunConfig
    result: TrainingResult
    num_parameters: int
    test: Measurements = field(default_factory=list)
    curves: dict[str, CalibrationCurve] = field(default_factory=dict)
    scenes: Measurements = field(default_factory=list)

    @property
    def title(self) -> str:
        """Name of the model in tables and pictures."""
        return self.config.system.title

    def value(self, metric: str, task: str, space: str) -> float:
        """Value of ``metric`` for ``task`` in ``space`` on the test split; NaN if it was not measured."""
        key = (metric, task, space)
        return next((r["value"] for r in self.test if (r["metric"], r["task"], r["space"]) == key), math.nan)

    def in_scene(self, scene: int) -> "ModelReport":
        """The run, its test rows those of a scene."""
        return replace(self, test=[row for row in self.scenes if row["scene"] == scene])


def save_report(report: ModelReport, file: Path) -> None:
    """Saves the run of a finished model, so that a resumed job neither repeats it nor reads the test split again."""
    curves = {task: [values.tolist() for values in curve] for task, curve in report.curves.items()}
    write_whole(
        file,
        to_json(
            {
                "result": asdict(report.result),
                "num_parameters": report.num_parameters,
                "test": report.test,
                "curves": curves,
                "scenes": report.scenes,
            }
        )
        + "\n",
    )


def read_report(config: RunConfig, file: Path) -> ModelReport | None:
    """The run of ``config`` that `save_report` saved, or None.

    Raises:
        InputError: if the file is damaged.
    """
    if not file.is_file():
        return None
    kept = read_json(file)
    try:
        result, num_parameters, test = TrainingResult.from_json(kept["result"]), kept["num_parameters"], kept["test"]
        curves = {task: CalibrationCurve(*map(_tensor, curve)) for task, curve in kept["curves"].items()}
        return ModelReport(config, result, num_parameters, with_nan(test), curves, with_nan(kept.get("scenes", [])))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: must be the report of a model, but is damaged ({error!r}); remove it") from error


def _tensor(values: Sequence[float | None]) -> torch.Tensor:
    return torch.tensor([math.nan if value is None else value for value in values])


def _single_task(reports: Sequence[ModelReport]) -> ModelReport | None:
    """The run of Single-Task, which RelaImpr and Gain compare with, if there is one."""
    return next((report for report in reports if report.config.name == "single_task"), None)


def result_rows(reports: Sequence[ModelReport], dataset: str, data: str | None = None) -> Measurements:
    """Rows ``{model, seed, dataset, data, split, task, space, metric, value}`` of the test split and of whole runs.

    Rows of a whole run have no task and no space; rows of a scene have its id besides, as ``scene``. A metric that is
    undefined because a class is absent is None.
    """
    rows: Measurements = []
    base = _single_task(reports)
    for report in reports:
        labels = {"model": report.config.name, "seed": report.config.training.seed, "dataset": dataset, "data": data}
        figures = [{"split": "test", **row} for row in report.test]
        if base is not None and report is not base:
            for row in [row for row in figures if row["metric"] in AUCS]:
                base_auc, score = base.value(row["metric"], row["task"], row["space"]), row["metric"][: -len("auc")]
                figures.append({**row, "metric": f"{score}rela_impr", "value": rela_impr(row["value"], base_auc)})
                figures.append({**row, "metric": f"{score}gain", "value": gain(row["value"], base_auc)})
        figures += [{"split": "test", **row} for row in report.scenes]
        for split, metric, value in [
            ("valid", f"mean_{report.config.training.early_stopping_metric}", report.result.best_score),
            ("train", "best_step", report.result.best_step),
            ("train", "samples_per_second", report.result.samples_per_second),
            ("train", "num_parameters", report.num_parameters),
        ]:
            figures.append({"split": split, "task": None, "space": None, "metric": metric, "value": value})
        rows += [{**labels, **figure} for figure in figures]
    return [{**row, "value": _defined(row["value"])} for row in rows]


def _defined(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def aligned(cells: list[list[str]]) -> list[str]:
    """Lines of left-aligned columns, with a rule below the first line."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def table(
    reports: Sequence[ModelReport],
    tasks: TaskForest,
    metrics: Sequence[str] = ("auc",),
    known: Mapping[str, Metric] = METRICS,
) -> str:
    """Each metric on the test split, for each task and sample space; speed, size and loss are beside the first metric.

    AUC is shown with RelaImpr over Single-Task in percent. After a step, a ranking metric is shown by both scores of
    `measured_as`, and the share of rows where the models contradict the funnel is beside the first.
    """
    base = _single_task(reports)
    later = {task: tasks.spaces(task)[1] for task in tasks.funnel if len(tasks.spaces(task)) > 1}

    def cell(report: ModelReport, metric: str, task: str, space: str) -> str:
        value = report.value(metric, task, space)
        if math.isnan(value):
            return "-"
        if metric not in AUCS or base is None or report is base:
            return f"{value:.4f}"
        return f"{value:.4f} {rela_impr(value, base.value(metric, task, space)):+.1%}"

    def block(title: str, metric: str, spaces: Mapping[str, str], about: Mapping[str, Sequence[str]]) -> list[str]:
        cells = [[title, *spaces, *about.get("", ())]]
        for report in reports:
            values = (cell(report, metric, task, space) for task, space in spaces.items())
            cells.append([report.title, *values, *about.get(report.config.name, ())])
        return ["", *aligned(cells)]

    about = {"": ["samples/s", "parameters", "loss"]}
    for report in reports:
        size = [f"{report.result.samples_per_second:,.0f}", f"{report.num_parameters:,}"]
        about[report.config.name] = [*size, loss_name(report.config.loss)]
    notes, lines = [], list[str]()
    for name in with_values(metrics, tasks, known):
        spaces = {task: spaces_of(known[name], tasks, task) for task in tasks}
        whole = {task: "impressions" for task, of_task in spaces.items() if "impressions" in of_task}
        if whole or name == metrics[0]:
            beside = about if name == metrics[0] else {}
            lines += block(f"test {known[name].title}, all impressions", name, whole, beside)
        after = {task: of_task[-1] for task, of_task in spaces.items() if of_task and of_task[-1] != "impressions"}
        for measured, title in measured_as(name, known[name], "after a step").items() if after else ():
            lines += block(f"test {title}, where the step before happened", measured, after, {})
    if any(task.kind.has_mean and task.after for task in tasks.values):
        notes.append("a value over all impressions: p(step before) x value, against the value or, without the step, 0")
    if later and any(known[name].score == "ranking" for name in metrics):
        title = "share with p_t > p_t-1, where the step before happened"
        lines += block(title, "share_above_previous", later, {})
        notes.append(
            "conditional: ranked by p_t / p_t-1; marginal: ranked by p_t, the probability from the impression on"
        )
    if base is not None and "auc" in metrics:
        notes.append("with RelaImpr over Single-Task: (AUC - .5) / (AUC of Single-Task - .5) - 1")
    return "\n".join([*lines[1:], *([""] if notes else []), *notes])


def with_values(metrics: Sequence[str], tasks: TaskForest, known: Mapping[str, Metric] = METRICS) -> list[str]:
    """The metrics to show, with some of values where tasks are values and none is of their kind."""
    shown = list(metrics)
    of_kinds = {
        "value": ("rmse", "gini", "value_calibration"),
        "quantile": ("pinball",),
        "class": ("class_accuracy", "class_log_loss"),
        "grade": ("class_mae",),
    }
    for score, names in of_kinds.items():
        is_shown = any(known[name].score == score for name in metrics)
        if any(score in task.kind.scores for task in tasks.values) and not is_shown:
            shown += [name for name in names if name in known]
    return shown


def write_report(
    reports: Sequence[ModelReport],
    schema: Schema,
    directory: Path,
    metrics: Sequence[str] = ("auc",),
    known: Mapping[str, Metric] = METRICS,
    data: str | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Prints the table, and writes it with ``report.png`` and ``results.json`` into ``directory``.

    ``results.json`` is written last and whole: a run that has it is finished.

    Args:
        reports: runs of the models.
        schema: schema of their data.
        directory: folder of the files.
        metrics: names of ``known`` metrics that the table shows, in order; the picture shows the first.
        known: all metrics that the runs measured; ``results.json`` has all of them.
        data: what `describe_data` says of the data, for ``results.json``.
        notes: sentences below the table.

    Raises:
        InputError: if a metric is unknown, or needs groups that the data does not have.
    """
    for metric in metrics:
        find_metric(metric, known, "metrics", with_groups=schema.group is not None)
    parts = [f"{schema.name}: {schema.tasks}", table(reports, schema.tasks, metrics, known)]
    for name, scene in sorted({(report.config.scene, row["scene"]) for report in reports for row in report.scenes}):
        of_scene = [report.in_scene(scene) for report in reports if report.config.scene == name]
        parts += [f"{name}={scene}", table(of_scene, schema.tasks, metrics[:1], known)]
    text = "\n".join(["\n\n".join(parts), *notes])
    (directory / "table.txt").write_text(text + "\n")
    from torchrec_mtl.jobs import pictures, run_picture  # of the extra "report", which only a run needs

    by_title = {report.title: [report] for report in reports}
    picture = run_picture.draw(by_title, schema.tasks, metrics[0], known[metrics[0]].title)
    (directory / "report.png").write_bytes(pictures.png(picture))
    rows = [to_json(row) for row in result_rows(reports, schema.name, data)]
    write_whole(directory / "results.json", "[\n" + ",\n".join(rows) + "\n]\n")
    print(f"\n{text}\n\n{directory}: results.json, report.png, table.txt, config.json", flush=True)
