"""Panels of pictures that can be read on a phone: two a row, the same scales, one legend above all of them."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from torchrec_mtl.metrics import CalibrationCurve

WIDTH = 5.2  # inches: a line of text is 10 px high where the picture is 390 px wide
PIXELS = 150  # of an inch
STYLES: list[dict[str, Any]] = [
    {"color": f"C{number % 10}", "linestyle": line} for line in ("-", "--", ":") for number in range(10)
]

Points = Mapping[int, float]  # a metric by optimizer step


def figure(heights: Sequence[float], columns: int = 2) -> tuple[Figure, list[list[Axes]]]:
    """A figure with rows of axes of these heights in inches."""
    made = plt.figure(figsize=(WIDTH, sum(heights) + 0.6), layout="constrained")
    grid = made.add_gridspec(len(heights), columns, height_ratios=list(heights))
    return made, [[made.add_subplot(grid[row, column]) for column in range(columns)] for row in range(len(heights))]


def panels(rows: Sequence[Sequence[Axes]], number: int, same_values: bool = True) -> list[Axes]:
    """The first ``number`` axes of the rows, with the same scales or the same horizontal one; the others go."""
    axes = [axis for row in rows for axis in row]
    for axis in axes[number:]:
        axis.remove()
    for axis in axes[1:number]:
        axis.sharex(axes[0])
        if same_values:
            axis.sharey(axes[0])
    return axes[:number]


def same_span(axes: Sequence[Axes]) -> None:
    """Gives the vertical axes the same scale, each about its curves: levels may differ more than what is compared."""
    spans = [axis.get_ylim() for axis in axes]
    half = max((high - low for low, high in spans), default=0.0) / 2
    for axis, (low, high) in zip(axes, spans, strict=True):
        axis.set_ylim((low + high) / 2 - half, (low + high) / 2 + half)


def legend(made: Figure, axes: Sequence[Axes], columns: int = 3) -> None:
    """One legend above all axes, of everything that is labelled in one of them."""
    found = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    made.legend(found.values(), found, loc="outside upper center", ncols=columns, fontsize=9, frameon=False)


def png(made: Figure) -> bytes:
    """The figure as PNG; the figure is closed."""
    file = io.BytesIO()
    made.savefig(file, format="png", dpi=PIXELS)
    plt.close(made)
    return file.getvalue()


def validation(axis: Axes, curves: Mapping[str, Sequence[Points]], task: str) -> None:
    """The mean over seeds of a metric at each step of all of them, and a band from the lowest to the highest.

    Args:
        axis: axes to draw in.
        curves: curve of each seed, by the title of the model.
        task: title of the axes.
    """
    for (title, seeds), style in zip(curves.items(), _styles(), strict=False):
        steps = sorted(set.intersection(*(set(seed) for seed in seeds)))
        values = np.array([[seed[step] for step in steps] for seed in seeds])
        axis.plot(steps, values.mean(0), label=title, linewidth=1.3, marker="o", markersize=2.5, **style)
        if len(seeds) > 1:
            axis.fill_between(steps, values.min(0), values.max(0), color=style["color"], alpha=0.15, linewidth=0)
    axis.set_title(task, fontsize=10)


def calibration(axis: Axes, curves: Mapping[str, Sequence[CalibrationCurve]], task: str, log: bool = True) -> None:
    """The share of positives over the mean predicted probability, one line a seed; the diagonal is right.

    Args:
        axis: axes to draw in.
        curves: curve of each seed, by the title of the model.
        task: title of the axes.
        log: whether to draw logarithms, in which bins without positives are left out.
    """
    ends: list[float] = []
    for (title, seeds), style in zip(curves.items(), _styles(), strict=False):
        for number, seed in enumerate(seeds):
            label = "_" if number else title  # a label that begins so has no place in a legend
            shown = np.asarray(seed.positive_rate) > 0 if log else slice(None)
            points = [np.asarray(values)[shown] for values in (seed.mean_prediction, seed.positive_rate)]
            ends += [float(end) for values in points if len(values) for end in (values.min(), values.max())]
            axis.plot(*points, linewidth=1.1, alpha=0.8, marker="o", markersize=2, label=label, **style)
    axis.set_title(task, fontsize=10)
    if log:
        axis.set(xscale="log", yscale="log")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_minor_formatter(NullFormatter())
    if len(set(ends)) > 1:
        axis.axline((min(ends),) * 2, (max(ends),) * 2, color="grey", linewidth=0.8)


def funnel(axis: Axes, observed: Mapping[str, float], predicted: Mapping[str, Mapping[str, float]]) -> None:
    """The share of impressions that reach each step, as bars, and what models predict, as marks.

    Args:
        axis: axes to draw in.
        observed: share of positives of each task.
        predicted: mean predicted probability of each task, by the title of the model.
    """
    places = np.arange(len(observed))
    axis.barh(places, list(observed.values()), color="0.85")
    for (title, shares), style in zip(predicted.items(), _styles(), strict=False):
        at = [place for place, task in zip(places, observed, strict=True) if task in shares]
        values = [shares[task] for task in observed if task in shares]
        axis.plot(values, at, "|", color=style["color"], markersize=13, markeredgewidth=1.6, label=title)
    axis.set_yticks(places, [f"{task}\n{share:.2%}" for task, share in observed.items()], fontsize=9)
    axis.set_xscale("log")
    drawn = [*observed.values(), *(value for shares in predicted.values() for value in shares.values())]
    axis.set_xlim(left=10 ** math.floor(math.log10(min(value for value in drawn if value > 0) / 2)))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.invert_yaxis()
    axis.set_xlabel("share of impressions: bar as logged, marks as predicted", fontsize=9)


def across(made: Figure, row: Sequence[Axes]) -> Axes:
    """One axes in the place of those of a row."""
    grid = row[0].get_gridspec()
    place = row[0].get_subplotspec()
    assert grid is not None
    assert place is not None
    for axis in row:
        axis.remove()
    return made.add_subplot(grid[place.rowspan.start, :])


def _styles() -> Any:
    while True:
        yield from STYLES
