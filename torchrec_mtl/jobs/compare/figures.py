"""The pictures of a comparison, as PNG bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from torchrec_mtl.jobs.compare.selection import Selection
from torchrec_mtl.jobs.compare.summary import PROPOSED, Scores, best_baseline
from torchrec_mtl.metrics import Metric
from torchrec_mtl.modules import SmoothStepSchedule, smooth_step


def png(figure: Figure) -> bytes:
    """The figure as PNG; the figure is closed."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    plt.close(figure)
    return file.getvalue()


def dots(collected: Mapping[str, Scores], metric: Metric) -> bytes:
    """The test metric over all impressions of every system and seed, by task; a line marks the best baseline."""
    systems = list(collected)[::-1]
    measured = list(collected[systems[0]].values)
    keys = [key for key in measured if key[1] == "impressions"] or measured
    size = (3.2 * len(keys) + 1.5, 0.3 * len(systems) + 1.2)
    figure, axes = plt.subplots(1, len(keys), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, key in zip(axes[0], keys, strict=True):
        for row, system in enumerate(systems):
            color = (
                "tab:grey" if collected[system].system.ablation_of else "tab:red" if system in PROPOSED else "tab:blue"
            )
            values = collected[system].values[key]
            axis.plot(values, [row] * len(values), "o", color=color, alpha=0.35, markersize=4)
            axis.plot(values.mean(), row, "|", color=color, markersize=14, markeredgewidth=2)
        best = best_baseline(collected, key, metric)
        if best is not None:
            axis.axvline(collected[best].mean(key), color="tab:blue", linewidth=0.8, linestyle="--")
        axis.set(title=key[0], xlabel=f"test {metric.title}", yticks=range(len(systems)))
        axis.set_yticklabels([collected[system].title for system in systems])
        axis.grid(axis="y", linewidth=0.3)
    return png(figure)


def heat_maps(points: Mapping[tuple[float, float], Mapping[str, float]], names: tuple[str, str]) -> bytes:
    """A sweep over two settings: a map for each measure, with the first setting as rows."""
    rows, columns = (sorted({point[i] for point in points}) for i in (0, 1))
    measures = list(next(iter(points.values())))
    size = (3.2 * len(measures), 0.5 * len(rows) + 1.8)
    figure, axes = plt.subplots(1, len(measures), figsize=size, squeeze=False, layout="constrained")
    for axis, measure in zip(axes[0], measures, strict=True):
        grid = np.array([[points.get((r, c), {}).get(measure, np.nan) for c in columns] for r in rows])
        axis.imshow(grid, cmap="viridis", aspect="auto")
        for (i, j), value in np.ndenumerate(grid):
            dark = value < np.nanmean(grid)
            text = "" if np.isnan(value) else f"{value:.4f}"
            axis.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        axis.set(title=measure, xticks=range(len(columns)), yticks=range(len(rows)), xlabel=names[1], ylabel=names[0])
        axis.set_xticklabels([f"{c:g}" for c in columns])
        axis.set_yticklabels([f"{r:g}" for r in rows])
    return png(figure)


def efficiency_bars(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """TAFE figure 8: time of training and inference relative to Shared-Bottom, and size of the parameters."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 0.32 * len(rows) + 1.2), sharey=True, layout="constrained")
    titles = [row["title"] for row in rows]
    for axis, measure, label in zip(
        axes,
        ("train_ratio", "infer_ratio", "parameter_mb"),
        ("training time / Shared-Bottom's", "inference time / Shared-Bottom's", "parameters, MB"),
        strict=True,
    ):
        bars = axis.barh(titles, [row[measure] for row in rows])
        axis.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
        axis.margins(x=0.15)
        axis.set_xlabel(label)
    axes[0].invert_yaxis()
    return png(figure)


def smooth_steps(schedule: SmoothStepSchedule, num_steps: int) -> bytes:
    """TAFE figure 5: the dynamic activation function at the start, in the middle and at the end of a run."""
    figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
    x = torch.linspace(-schedule.start * 0.6, schedule.start * 0.6, 401)
    for step in (0, num_steps // 4, num_steps // 2, num_steps):
        gamma = max(schedule.start - schedule.rate * step, schedule.end)
        axis.plot(x, smooth_step(x, gamma), label=f"step {step}, $\\gamma$ = {gamma:g}")
    axis.set(xlabel="x", ylabel="$f_D(x)$")
    axis.legend(fontsize=8)
    return png(figure)


def selection_rates(selection: Selection) -> bytes:
    """TAFE figures 7a and 7b: the share of inducing points that samples select, and where high and low shares lie.

    The map shows the first two principal components of the samples' representations.
    """
    figure, (histogram, plane) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    points = selection.selected.shape[1]
    histogram.hist(selection.rate, bins=np.arange(points + 2) / points - 0.5 / points)
    histogram.set(xlabel="selection rate: share of inducing points with z > 0", ylabel="samples")
    low, middle, high = np.quantile(selection.rate, (0.01, 0.5, 0.99))
    groups = {
        f"low ({low:.2f} and less)": selection.rate <= low,
        f"middle ({middle:.2f})": selection.rate == middle,
        f"high ({high:.2f} and more)": selection.rate >= high,
    }
    generator = np.random.default_rng(0)
    for (label, chosen), color in zip(groups.items(), ("tab:blue", "gold", "tab:green"), strict=True):
        rows = generator.permutation(np.flatnonzero(chosen))[:500]
        plane.scatter(*selection.plane[rows].T, s=6, color=color, label=label, alpha=0.7)
    plane.set(xlabel="first principal component", ylabel="second")
    plane.legend(fontsize=8)
    return png(figure)
