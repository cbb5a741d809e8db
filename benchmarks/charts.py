"""The charts of `benchmarks.report`: each takes a results file's rows."""

from collections.abc import Sequence

import polars as pl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def dots(
    frame: pl.DataFrame, label: Sequence[str], panel: Sequence[str], columns: int = 1, log: bool = False
) -> Figure:
    """Medians with lines from p20 to p80, first row on top.

    Args:
        frame: rows.
        label: columns that name a row.
        panel: columns whose values together make a panel of their own.
        columns: how many panels lie beside each other.
        log: whether the axes are logarithmic; they begin at 0 otherwise.
    """
    panels = frame.partition_by(panel, maintain_order=True)
    heights = [max(len(rows) for rows in panels[i : i + columns]) for i in range(0, len(panels), columns)]
    size = (9 if columns == 1 else 5.5 * columns, 0.26 * sum(heights) + 0.8 * len(heights))
    shape = {"squeeze": False, "height_ratios": heights, "layout": "constrained"}
    figure, axes = plt.subplots(len(heights), columns, figsize=size, **shape)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, rows in zip(axes.flat, panels, strict=False):
        _dots(axis, rows, label)
        axis.set_title(", ".join(str(rows[name][0]) for name in panel), loc="left", fontsize=9)
        if log:
            axis.set_xscale("log")
        else:
            axis.set_xlim(left=0)
            axis.locator_params(axis="x", nbins=5)
            axis.xaxis.set_major_formatter("{x:,.6g}")
        axis.tick_params(axis="x", labelsize=8)
    return figure


def _dots(axis: Axes, rows: pl.DataFrame, label: Sequence[str]) -> None:
    names = [", ".join(str(x) for x in row if x is not None) for row in rows.select(label).iter_rows()]
    heights = range(len(rows))[::-1]
    axis.hlines(heights, rows["p20"], rows["p80"], color="tab:blue", alpha=0.4, linewidth=3)
    axis.plot(rows["median"], heights, "o", color="tab:blue", markersize=4)
    axis.set_yticks(heights, names, fontsize=8)
    axis.set_ylim(-0.7, len(rows) - 0.3)
    axis.set_xlabel(", ".join(rows["unit"].unique()), fontsize=8)
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def lines(frame: pl.DataFrame, x: str, series: Sequence[str], panel: str) -> Figure:
    """Medians over ``x``, a line for each series, bands from p20 to p80."""
    panels = frame.partition_by(panel, maintain_order=True)
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 3.6), squeeze=False, layout="constrained")
    for axis, rows in zip(axes[0], panels, strict=True):
        for own in rows.partition_by(series, maintain_order=True):
            own = own.sort(x)
            name = ", ".join(str(own[column][0]) for column in series)
            (line,) = axis.plot(own[x], own["median"], marker="o", markersize=4, label=name)
            axis.fill_between(own[x], own["p20"], own["p80"], color=line.get_color(), alpha=0.2, linewidth=0)
        axis.set(title=str(rows[panel][0]), xlabel=x.replace("_", " "), ylabel=rows["unit"][0], yscale="log")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    return figure


def attention(frame: pl.DataFrame) -> Figure:
    """Paths over the share of points selected, two tasks."""
    stack = frame.filter((pl.col("what") == "stack") & (pl.col("tasks") == 2) & (pl.col("candidate") != "auto"))
    return lines(stack, "active", ["candidate"], "direction")


def gpu_attention(frame: pl.DataFrame) -> Figure:
    """Paths over the share of points selected, a panel for each size and direction."""
    named = frame.with_columns(case=pl.concat_str(["size", "direction"], separator=", "))
    return lines(named, "active", ["candidate", "mode"], "case")


def preparation(frame: pl.DataFrame) -> Figure:
    """Rows a second."""
    speeds = frame.filter(pl.col("figure") == "speed").with_columns(size=pl.format("{} MB", "raw_megabytes"))
    return dots(speeds, ["program"], ["size"], columns=2)


def reading(frame: pl.DataFrame) -> Figure:
    """Samples a second."""
    return dots(frame.filter(pl.col("unit") == "samples/s"), ["way"], ["data"], log=True)


def throughput(frame: pl.DataFrame) -> Figure:
    """Samples a second at the base, and under every sharding on one, two and four ranks."""
    rows = frame.filter((pl.col("measured") == "throughput") & pl.col("axis").is_in(["base", "sharding"]))
    named = rows.with_columns(
        where=pl.format("{}, {} rank(s)", "axis", "ranks"),
        what=pl.concat_str(["direction", "optimizer"], separator=", ", ignore_nulls=True),
    )
    return dots(named, ["candidate"], ["where", "what"], columns=3)


def step_parts(frame: pl.DataFrame) -> Figure:
    """What a step of each model is made of."""
    rows = frame.filter((pl.col("question") == "parts") & pl.col("percent_of_step").is_not_null())
    models = rows["model"].unique(maintain_order=True).to_list()[::-1]
    figure, axis = plt.subplots(figsize=(9, 0.4 * len(models) + 1.8), layout="constrained")
    left = dict.fromkeys(models, 0.0)
    colours = plt.get_cmap("tab20").colors
    for number, of_part in enumerate(rows.partition_by("part", maintain_order=True)):
        widths = dict(of_part.select("model", "median").iter_rows())
        axis.barh(
            models,
            [widths.get(model, 0.0) for model in models],
            left=[left[model] for model in models],
            color=colours[number % len(colours)],
            label=of_part["part"][0],
        )
        left = {model: at + widths.get(model, 0.0) for model, at in left.items()}
    axis.set_xlabel("ms of processor time a step")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncol=4, fontsize=8, frameon=False)
    return figure


def step_growth(frame: pl.DataFrame) -> Figure:
    """By how much a whole step grows."""
    rows = frame.filter((pl.col("question") == "growth") & (pl.col("part") == "whole step"))
    return dots(rows, ["model"], ["change"], columns=2)


def step_figure_8(frame: pl.DataFrame) -> Figure:
    """Times to Shared-Bottom's."""
    return dots(frame.filter(pl.col("question") == "figure 8"), ["model"], ["part"], columns=2)


def peers_speed(frame: pl.DataFrame) -> Figure:
    """Samples a CPU second of training."""
    return dots(frame.filter(pl.col("measure") == "training"), ["library"], ["setting", "model"], columns=2)
