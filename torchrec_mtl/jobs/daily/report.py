"""What a run over days shows: two tables by day, one picture, and a line for each day."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchrec_mtl.files import write_whole
from torchrec_mtl.jobs.daily.folder import DayReport
from torchrec_mtl.tasks import TaskForest

FIGURES = {"auc": "AUC", "normalized_entropy": "normalized entropy", "calibration": "calibration"}
_MOST_FIELDS = 6  # in the picture: those that drift most


def write_days(reports: Sequence[DayReport], tasks: TaskForest, directory: Path) -> None:
    """Writes ``days.csv`` (figures), ``drift.csv`` (fields) and ``days.png`` (both), each whole, into ``directory``.

    Args:
        reports: reports of all days, in order.
        tasks: funnel of tasks.
        directory: folder of the files.
    """
    figures: list[Sequence[Any]] = [("day", "published", "num_rows", "task", "space", "metric", "value")]
    drift: list[Sequence[Any]] = [("day", "field", "missing", "unknown", "stability", "new_ids", "left_out")]
    for report in reports:
        published = int(not report.broken)
        for row in report.scored:
            named = (row[name] for name in ("task", "space", "metric"))
            figures.append((report.day, published, report.num_rows, *named, _written(row["value"])))
        for name, counts in report.fields.items():
            numbers = (counts.missing, counts.unknown, report.stability.get(name, math.nan))
            ids = (of.get(name, "") for of in (report.new_ids, report.left_out))
            drift.append((report.day, name, *map(_written, numbers), *ids))
    for file, rows in (("days.csv", figures), ("drift.csv", drift)):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        write_whole(directory / file, text.getvalue())
    draw(reports, tasks, directory / "days.png")


def summary(report: DayReport, tasks: TaskForest) -> str:
    """Returns what a day says in one line.

    Example::

        >>> from datetime import date
        >>> from torchrec_mtl.tasks import TaskChain
        >>> summary(DayReport(date(2026, 11, 1), 1200, loss=0.25), TaskChain(["click"]))
        '2026-11-01: 1,200 rows, the first day, loss 0.2500'
    """
    parts = [f"{report.day}: {report.num_rows:,} rows"]
    if report.scored:
        for metric, title in FIGURES.items():
            values = " / ".join(f"{value(report, task, metric):.4f}" for task in tasks.funnel)
            parts.append(f"{title} {values}")
    else:
        parts.append("the first day")
    unknown = {name: counts.unknown for name, counts in report.fields.items() if counts.unknown}
    if unknown:
        parts.append("unknown " + " ".join(f"{name} {share:.1%}" for name, share in unknown.items()))
    if any(report.left_out.values()):
        of = " ".join(f"{name} {number:,}" for name, number in report.left_out.items() if number)
        parts.append(f"values without a row (`spare_rows`): {of}")
    if report.loss is not None:
        parts.append(f"loss {report.loss:.4f}")
    return ", ".join(parts)


def value(report: DayReport, task: str, metric: str) -> float:
    """Returns a figure over all impressions, NaN if it was not measured."""
    key = (task, "impressions", metric)
    return next((row["value"] for row in report.scored if (row["task"], row["space"], row["metric"]) == key), math.nan)


def draw(reports: Sequence[DayReport], tasks: TaskForest, file: Path) -> None:
    """Draws the figures of each task and the drift of the fields by day, one above the other, to be read on a phone."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    days = [report.day for report in reports]
    with plt.rc_context({"font.size": 9, "lines.linewidth": 1.5, "axes.grid": True, "grid.alpha": 0.3}):
        figure, axes = plt.subplots(6, 1, figsize=(3.9, 13), sharex=True, layout="constrained")
        for axis, (metric, title) in zip(axes, FIGURES.items(), strict=False):
            for task in tasks.funnel:
                axis.plot(
                    days, [value(report, task, metric) for report in reports], marker="o", markersize=3, label=task
                )
            axis.set_title(f"{title}, by the model of the day before", fontsize=9, loc="left")
        axes[2].axhline(1, color="grey", linewidth=1, linestyle="--")
        fields = reports[0].fields
        panels = {
            "share of unknown ids": {name: [each.fields[name].unknown for each in reports] for name in fields},
            "share of missing values": {name: [each.fields[name].missing for each in reports] for name in fields},
            "population stability index": {
                name: [each.stability.get(name, math.nan) for each in reports] for name in fields
            },
        }
        for axis, (title, of_fields) in zip(axes[3:], panels.items(), strict=True):
            for name in _largest(of_fields):
                axis.plot(days, of_fields[name], marker="o", markersize=3, label=name)
            axis.set_title(title, fontsize=9, loc="left")
            axis.set_ylim(0, 1.05 * axis.get_ylim()[1])
        refused = [report.day for report in reports if report.broken]
        for axis in axes:
            for day in refused:
                label = "not published" if day == refused[0] and axis is axes[0] else None
                axis.axvline(day, color="red", linewidth=1, linestyle=":", label=label)
            if axis.get_legend_handles_labels()[1]:
                axis.legend(fontsize=8, ncols=2)
        axes[-1].set_xticks(days[:: -(-len(days) // 5)])
        axes[-1].set_xticklabels([f"{day:%m-%d}" for day in days[:: -(-len(days) // 5)]])
        partial = file.with_name(f".{file.name}.partial.png")
        figure.savefig(partial, dpi=200)
        plt.close(figure)
    partial.replace(file)


def _written(number: float) -> str:
    """A number in a table; an undefined one is empty."""
    return "" if math.isnan(number) else f"{number:.6g}"


def _largest(of_fields: Mapping[str, Sequence[float]]) -> list[str]:
    """The names of the fields with the largest values, in the order of the fields, without those that are all 0."""
    highest = {name: max((v for v in values if not math.isnan(v)), default=0.0) for name, values in of_fields.items()}
    chosen = sorted(highest, key=highest.__getitem__, reverse=True)[:_MOST_FIELDS]
    return [name for name in of_fields if name in chosen and highest[name] > 0]
