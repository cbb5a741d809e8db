"""The pictures of a comparison, as PNG bytes."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from torchrec_mtl.jobs import pictures
from torchrec_mtl.jobs.compare.selection import Selection
from torchrec_mtl.jobs.compare.summary import PROPOSED, Scores, best_baseline
from torchrec_mtl.metrics import Metric
from torchrec_mtl.modules import SmoothStepSchedule, smooth_step


def dots(collected: Mapping[str, Scores], metric: Metric) -> bytes:
    """The test metric over all impressions of every system and seed, by task; a line marks the best baseline."""
    systems = list(collected)[::-1]
    measured = list(collected[systems[0]].values)
    keys = [key for key in measured if key[1] == "impressions"] or measured
    titles = [textwrap.fill(collected[system].title, 20) for system in systems]
    height = 0.28 if any("\n" in title for title in titles) else 0.2
    figure, rows = pictures.figure([height * len(systems) + 0.7] * -(-len(keys) // 2))
    axes = [axis for row in rows for axis in row]
    for axis in axes[len(keys) :]:
        axis.remove()
    for axis, key in zip(axes, keys, strict=False):
        for row, system in enumerate(systems):
            color = (
                "tab:grey" if collected[system].system.ablation_of else "tab:red" if system in PROPOSED else "tab:blue"
            )
            values = collected[system].values[key]
            axis.plot(values, [row] * len(values), "o", color=color, alpha=0.35, markersize=3)
            axis.plot(values.mean(), row, "|", color=color, markersize=10, markeredgewidth=2)
        best = best_baseline(collected, key, metric)
        if best is not None:
            axis.axvline(collected[best].mean(key), color="tab:blue", linewidth=0.8, linestyle="--")
        axis.set_title(key[0], fontsize=10)
        axis.set_xlabel(f"test {metric.title}", fontsize=9)
        axis.tick_params(labelsize=9)
        axis.locator_params(axis="x", nbins=3)
        shown = titles if axis in axes[::2] else [""] * len(systems)
        axis.set_yticks(range(len(systems)), shown, linespacing=0.9)
        axis.grid(axis="y", linewidth=0.3)
    return pictures.png(figure)


def heat_maps(points: Mapping[tuple[float, float], Mapping[str, float]], names: tuple[str, str]) -> bytes:
    """A sweep over two settings: a map for each measure, with the first setting as rows."""
    rows, columns = (sorted({point[i] for point in points}) for i in (0, 1))
    measures = list(next(iter(points.values())))
    figure, maps = pictures.figure([0.3 * len(rows) + 0.9] * len(measures), columns=1)
    for (axis,), measure in zip(maps, measures, strict=True):
        grid = np.array([[points.get((r, c), {}).get(measure, np.nan) for c in columns] for r in rows])
        axis.imshow(grid, cmap="viridis", aspect="auto")
        for (i, j), value in np.ndenumerate(grid):
            dark = value < np.nanmean(grid)
            text = "" if np.isnan(value) else f"{value:.4f}"
            axis.text(j, i, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
        axis.set_title(measure, fontsize=10)
        axis.set_xlabel(names[1], fontsize=9)
        axis.set_ylabel(names[0].rpartition(".")[2], fontsize=9)
        axis.set_xticks(range(len(columns)), [f"{c:g}" for c in columns])
        axis.set_yticks(range(len(rows)), [f"{r:g}" for r in rows])
    return pictures.png(figure)


def efficiency_bars(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """TAFE figure 8: time of training and inference relative to Shared-Bottom, and size of the parameters."""
    labels = {
        "train_ratio": "training time / Shared-Bottom's",
        "infer_ratio": "inference time / Shared-Bottom's",
        "parameter_mb": "parameters, MB",
    }
    figure, axes = pictures.figure([0.22 * len(rows) + 0.6] * len(labels), columns=1)
    for (axis,), (measure, label) in zip(axes, labels.items(), strict=True):
        bars = axis.barh([row["title"] for row in rows], [row[measure] for row in rows])
        axis.bar_label(bars, fmt="%.2f", padding=2, fontsize=9)
        axis.margins(x=0.2)
        axis.tick_params(labelsize=9)
        axis.set_xlabel(label, fontsize=9)
        axis.invert_yaxis()
    return pictures.png(figure)


def smooth_steps(schedule: SmoothStepSchedule, num_steps: int) -> bytes:
    """TAFE figure 5: the dynamic activation function at the start, in the middle and at the end of a run."""
    figure, ((axis,),) = pictures.figure([2.6], columns=1)
    x = torch.linspace(-schedule.start * 0.6, schedule.start * 0.6, 401)
    for step in (0, num_steps // 4, num_steps // 2, num_steps):
        gamma = max(schedule.start - schedule.rate * step, schedule.end)
        axis.plot(x, smooth_step(x, gamma), label=f"step {step}, $\\gamma$ = {gamma:g}")
    axis.set(xlabel="x", ylabel="$f_D(x)$")
    pictures.legend(figure, [axis], columns=2)
    return pictures.png(figure)


def selection_rates(selection: Selection) -> bytes:
    """TAFE figures 7a and 7b: the share of inducing points that samples select, and where high and low shares lie.

    The map shows the first two principal components of the samples' representations.
    """
    figure, ((histogram,), (plane,)) = pictures.figure([2.2, 3.2], columns=1)
    points = selection.selected.shape[1]
    histogram.hist(selection.rate, bins=np.arange(points + 2) / points - 0.5 / points)
    histogram.set_xlabel("selection rate: share of inducing points with z > 0", fontsize=9)
    histogram.set_ylabel("samples", fontsize=9)
    generator = np.random.default_rng(0)
    for (label, chosen), color in zip(_by_rate(selection.rate).items(), ("tab:blue", "gold", "tab:green"), strict=True):
        if chosen.any():
            rows = generator.permutation(np.flatnonzero(chosen))[:500]
            first, second = selection.plane[rows].T
            plane.scatter(first, second, s=6, color=color, label=label, alpha=0.7)
    plane.set(xlabel="first principal component", ylabel="second")
    pictures.legend(figure, [plane])
    return pictures.png(figure)


def _by_rate(rate: np.ndarray) -> dict[str, np.ndarray]:
    """The samples whose rate is the median's, and those of the lowest and highest hundredth that are not."""
    low, middle, high = np.quantile(rate, (0.01, 0.5, 0.99), method="nearest")
    return {
        f"low ({low:.2f} and less)": (rate <= low) & (rate < middle),
        f"middle ({middle:.2f})": rate == middle,
        f"high ({high:.2f} and more)": (rate >= high) & (rate > middle),
    }
