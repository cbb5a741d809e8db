"""What a training job leaves: a table, ``results.json`` and a picture."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torchrec_mtl.data import Schema
from torchrec_mtl.jobs.settings import MODELS, RunConfig
from torchrec_mtl.metrics import CalibrationCurve, rela_impr
from torchrec_mtl.tasks import TaskChain
from torchrec_mtl.training.fit import Rows, TrainingResult


@dataclass(frozen=True)
class ModelReport:
    """One model's run.

    Args:
        config: what was run.
        result: its training.
        test: test rows ``{task, space, metric, value}``.
        curves: calibration on the test split, by task.
        num_parameters: of the whole model, tables included.
    """

    config: RunConfig
    result: TrainingResult
    test: Rows
    curves: dict[str, CalibrationCurve]
    num_parameters: int

    @property
    def title(self) -> str:
        """The model's name in tables and pictures."""
        return MODELS[self.config.model].title

    def auc(self, task: str, space: str) -> float:
        """Test AUC of ``task`` in ``space``."""
        return next(r["value"] for r in self.test if (r["task"], r["space"], r["metric"]) == (task, space, "auc"))


def result_rows(reports: list[ModelReport], dataset: str) -> Rows:
    """Rows ``{model, seed, dataset, split, task, space, metric, value}``: the test split, and the run's own figures.

    Those have no task and no space.
    """
    rows = []
    for report in reports:
        labels = {"model": report.config.model, "seed": report.config.training.seed, "dataset": dataset}
        whole = {"task": None, "space": None}
        figures = [{"split": "test", **row} for row in report.test] + [
            {"split": "valid", **whole, "metric": "mean_auc", "value": report.result.best_score},
            {"split": "train", **whole, "metric": "best_step", "value": report.result.best_step},
            {"split": "train", **whole, "metric": "samples_per_second", "value": report.result.samples_per_second},
            {"split": "train", **whole, "metric": "num_parameters", "value": report.num_parameters},
        ]
        rows += [{**labels, **figure} for figure in figures]
    return rows


def table(reports: list[ModelReport], tasks: TaskChain) -> str:
    """Test AUC of each task in each of its spaces, RelaImpr over Single-Task where it was run, speed and size."""
    base = next((report for report in reports if report.config.model == "single_task"), None)
    columns = [(task, space) for place in (0, 1) for task in tasks for space in tasks.spaces(task)[place : place + 1]]
    header = [
        ["", *(task for task, _ in columns), "samples/s", "parameters"],
        ["test AUC", *("all" if space == "impressions" else space for _, space in columns), "", ""],
    ]
    body = []
    for report in reports:
        cells = [report.title]
        for column in columns:
            cell = f"{report.auc(*column):.4f}"
            if base is not None and report is not base:
                cell += f" {100 * rela_impr(report.auc(*column), base.auc(*column)):+.1f}%"
            cells.append(cell)
        body.append([*cells, f"{report.result.samples_per_second:,.0f}", f"{report.num_parameters:,}"])
    widths = [max(map(len, column)) for column in zip(*header, *body, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in header + body]
    lines.insert(2, "-" * max(map(len, lines)))
    if base is not None:
        lines.append("+x.x%: RelaImpr over Single-Task, (AUC - .5) / (AUC of Single-Task - .5) - 1")
    return "\n".join(lines)


def draw(reports: list[ModelReport], tasks: TaskChain, file: Path) -> None:
    """Validation AUC over training, and calibration on the test split; a column a task."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(tasks), figsize=(4 * len(tasks), 7.5), squeeze=False, layout="constrained")
    for (curve_axis, calibration_axis), task in zip(axes.T, tasks, strict=True):
        for report in reports:
            points = [
                (row["step"], row["value"])
                for row in report.result.history
                if (row["task"], row["space"], row["metric"]) == (task, "impressions", "auc")
            ]
            curve_axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=report.title)
            curve = report.curves[task]
            calibration_axis.plot(curve.mean_prediction, curve.positive_rate, marker="o", markersize=3)
        curve_axis.set(title=task, xlabel="optimizer step")
        calibration_axis.axline((1e-3, 1e-3), (1, 1), color="grey", linewidth=1, linestyle="--")
        calibration_axis.set(xscale="log", yscale="log", xlabel="mean predicted probability")
    axes[0, 0].set_ylabel("validation AUC, all impressions")
    axes[1, 0].set_ylabel("share of positives in the test split")
    axes[0, 0].legend()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def write_report(reports: list[ModelReport], schema: Schema, directory: Path) -> None:
    """Prints the table and writes it with ``results.json``, ``config.json`` and ``report.png`` into ``directory``."""
    rows = result_rows(reports, schema.name)
    text = table(reports, schema.tasks)
    configs: dict[str, Any] = {report.config.model: asdict(report.config) for report in reports}
    (directory / "config.json").write_text(json.dumps(configs, indent=2) + "\n")
    (directory / "results.json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    (directory / "table.txt").write_text(text + "\n")
    draw(reports, schema.tasks, directory / "report.png")
    print(f"\n{text}\n\n{directory}: results.json, report.png, table.txt, config.json", flush=True)
