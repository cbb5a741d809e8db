"""The picture of runs: validation, calibration and the funnel."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from torchrec_mtl.jobs import pictures
from torchrec_mtl.jobs.results import ModelReport
from torchrec_mtl.tasks import TaskForest

Reports = Mapping[str, Sequence[ModelReport]]  # of all seeds, by the title of the model


def draw(reports: Reports, tasks: TaskForest, metric: str, title: str) -> Figure:
    """Draws ``metric`` on validation during training, calibration on the test split, and the funnel with predictions.

    Args:
        reports: the models.
        tasks: their tasks.
        metric: name of the metric.
        title: its title.
    """
    binary = list(tasks.funnel)
    has_curve = {task for seeds in reports.values() for report in seeds for task in report.curves}
    values = [task.name for task in tasks.values if task.name in has_curve]
    num_rows = [-(-len(names) // 2) for names in (list(tasks), binary, values)]
    logged = _logged(next(iter(reports.values())), binary)
    of_funnel = [0.35 * len(logged) + 0.8] if logged else []
    made, rows = pictures.figure([1.9] * num_rows[0] + [2.1] * sum(num_rows[1:]) + of_funnel)
    ends = np.cumsum(num_rows)
    training = _training(rows[: ends[0]], reports, tasks, metric, title)
    _calibration(rows[ends[0] : ends[1]], reports, binary, "probability", "share of positives")
    _calibration(rows[ends[1] : ends[2]], reports, values, "value", "mean value")
    if logged:
        predicted = {name: _predicted(seeds, logged) for name, seeds in reports.items()}
        pictures.funnel(pictures.across(made, rows[-1]), logged, predicted)
    pictures.legend(made, training)
    return made


def _training(
    rows: Sequence[Sequence[Axes]], reports: Reports, tasks: TaskForest, metric: str, title: str
) -> list[Axes]:
    axes = pictures.panels(rows, len(tasks), same_values=False)
    for axis, task in zip(axes, tasks, strict=True):
        curves = {name: [_curve(report, task, metric) for report in seeds] for name, seeds in reports.items()}
        pictures.validation(axis, curves, task)
        axis.set_xlabel("optimizer step", fontsize=9)
    pictures.same_span(axes)
    for row in rows:
        row[0].set_ylabel(f"validation {title}", fontsize=9)
    return axes


def _curve(report: ModelReport, task: str, metric: str) -> dict[int, float]:
    rows = [row for row in report.result.history if (row["task"], row["space"]) == (task, "impressions")]
    return {row["step"]: row["value"] for row in rows if row["metric"] == metric}


def _calibration(rows: Sequence[Sequence[Axes]], reports: Reports, names: Sequence[str], kind: str, title: str) -> None:
    for axis, task in zip(pictures.panels(rows, len(names)), names, strict=True):
        found = {name: [each.curves[task] for each in seeds if task in each.curves] for name, seeds in reports.items()}
        pictures.calibration(axis, found, task, log=kind == "probability")
        axis.set_xlabel(f"predicted {kind}", fontsize=9)
    for row in rows:
        row[0].set_ylabel(title, fontsize=9)


def _mean(seeds: Sequence[ModelReport], metric: str, task: str) -> float:
    return float(np.mean([report.value(metric, task, "impressions") for report in seeds]))


def _logged(seeds: Sequence[ModelReport], names: Sequence[str]) -> dict[str, float]:
    """The share of positives of each task that has some."""
    shares = {task: _mean(seeds, "positives", task) / _mean(seeds, "num_rows", task) for task in names}
    return {task: share for task, share in shares.items() if share > 0}


def _predicted(seeds: Sequence[ModelReport], logged: Mapping[str, float]) -> dict[str, float]:
    """The mean predicted probability of each task."""
    return {task: _mean(seeds, "calibration", task) * share for task, share in logged.items()}
