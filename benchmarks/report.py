"""Puts all results and their charts on one page: ``make bench-report`` writes ``benchmarks/results/report.html``.

All of it comes from the CSV files beside it. Rows have the numbers of their lines there: ``data_reading.csv#L3``, as in
a link on GitHub and in the README.
"""

import html
from collections import namedtuple
from pathlib import Path

import polars as pl
from matplotlib.figure import Figure
from polars import col

from benchmarks.record import CIRCUMSTANCES, RESULTS
from torchrec_mtl.jobs.compare.html import heading, page, paragraph, picture, table
from torchrec_mtl.jobs.pictures import plt, png

PAGE = RESULTS / "report.html"
# Rows that are shown, columns that name a row, columns whose values have a panel, panels beside each other.
Chart = namedtuple("Chart", "rows label panel columns")
SPEEDS = ["measure", "batch_size", "setting"]
EMBEDDINGS = (col("measured") == "throughput") & col("axis").is_in(["base", "sharding"])
THROUGHPUT = Chart(EMBEDDINGS, ["candidate"], ["axis", "ranks", "direction", "optimizer"], 3)
STEP = Chart((col("question") == "parts") & (col("part") == "whole step"), ["model"], ["part"], 1)
COSTS = Chart(col("median").is_not_null(), ["model"], ["direction"], 2)
OVER_ARCHES = Chart(col("to_base").is_not_null(), ["candidate", "selected"], ["what", "direction"], 2)
PEERS = Chart(col("measure").is_in(["inference", "training"]), ["model", "library", "variant"], SPEEDS, 4)
PATHS = Chart((col("what") == "stack") & (col("tasks") == 2), ["candidate"], ["direction", "active"], 2)
MEASURED = (col("what") == "stack") & col("median").is_not_null()
ON_A_GPU = Chart(MEASURED, ["candidate", "mode"], ["size", "direction", "share"], 2)
SCORING = Chart(col("measure") == "rate", ["way"], ["library", "model", "batch_size"], 4)
BALANCING = Chart(col("median").is_not_null(), ["balancing"], ["system", "tasks"], 2)
TABLES = "Lookups and updates of Criteo's tables beside a plain copy; docs/embedding_throughput.md says what to choose."
PARTS = "Steps of all models, their parts and growth, TAFE's figure 8, and the training loop beside bare TorchRec."
# The name of a CSV file, the program that writes it, a heading, what was measured, a chart where it helps to choose.
Section = namedtuple("Section", "name program title text chart", defaults=[None])
SECTIONS = (
    Section("embedding_throughput", "embedding_throughput", "Embedding throughput", TABLES, THROUGHPUT),
    Section("training_step", "training_step", "A training step, taken apart", PARTS, STEP),
    Section("over_arches", "over_arches", "TAFE and BPCM", "Beside Shared-Bottom and TorchRec's DLRM.", OVER_ARCHES),
    Section("model_costs", "model_costs", "Models", "Steps and forward passes beside Shared-Bottom and DLRM.", COSTS),
    Section("peers", "peers", "Other libraries", "The same models: inference, training, memory.", PEERS),
    Section("bf16_auc", "peers.quality", "AUC in bf16", "Our models with autocast to bf16, beside fp32."),
    Section("peers_auc", "peers.quality", "Other libraries' AUC", "The same models after equal steps."),
    Section("inducing_attention_cpu", "attention", "TAFE's attention on a CPU", "The stack and whole models.", PATHS),
    Section("gpu", "gpu", "On a GPU", "TAFE's stack, training, embeddings; docs/gpu.md.", ON_A_GPU),
    Section("roofline", "roofline", "At most on a GPU", "What TAFE's stack must take on an H200; docs/roofline.md."),
    Section("scaling_measured", "scaling", "Several processes", "The training loop beside bare TorchRec."),
    Section(
        "zero_collision",
        "zero_collision",
        "Ids without a vocabulary",
        "What rows on demand cost a step.",
    ),
    Section("data_preparation", "data_preparation", "Preparing Ali-CCP", "Raw files, beside the AITM authors' steps."),
    Section("table_preparation", "table_preparation", "Preparing a declared table", "Twelve fields, beside pandas."),
    Section("balancing", "balancing", "Balancing", "A step with each method, beside the plain sum.", BALANCING),
    Section("histories", "histories", "Histories", "A step with an attended field, beside a pooled one."),
    Section("late_labels", "late_labels", "Late labels", "How near the truth a model comes if purchases arrive late."),
    Section("simulated_funnels", "simulated_funnels", "p(buy | click)", "Beside the truth, over all impressions."),
    Section("simulated_funnels_tafe", "simulated_funnels.tafe", "TAFE's p(buy | click)", "One thing changed."),
    Section("data_reading", "data_reading", "Reading", "What one reader hands out, beside what a model trains at."),
    Section("scoring", "scoring", "Scoring a batch", "Python, TorchScript, packages, C++; DLRM and ONNX.", SCORING),
    Section("service", "service", "A service under load", "Times, answers and memory, while packages are exchanged."),
    Section("every_day", "every_day", "New ids every day", "Each day scored by the model of the day before."),
)


def draw(chart: Chart, frame: pl.DataFrame) -> Figure:
    """Medians with lines from p20 to p80, first row on top."""
    panels = frame.partition_by(chart.panel, maintain_order=True)
    lines = [max(map(len, panels[i : i + chart.columns])) for i in range(0, len(panels), chart.columns)]
    size = (9 if chart.columns == 1 else 5.5 * chart.columns, 0.26 * sum(lines) + 0.8 * len(lines))
    shape = {"squeeze": False, "height_ratios": lines, "layout": "constrained"}
    figure, axes = plt.subplots(len(lines), chart.columns, figsize=size, **shape)
    for axis, rows in zip(axes.flat, panels, strict=False):
        heights, names = range(len(rows))[::-1], rows.select(chart.label).rows()
        labels = [", ".join(str(part) for part in name if part is not None) for name in names]
        axis.hlines(heights, rows["p20"], rows["p80"], alpha=0.4, linewidth=3)
        axis.plot(rows["median"], heights, "o", markersize=4)
        axis.set_yticks(heights, labels, fontsize=8)
        values = [f"{name} {rows[name][0]}" for name in chart.panel if rows[name][0] is not None]
        axis.set_title(", ".join(values), loc="left", fontsize=9)
        axis.set_xlabel(rows["unit"][0], fontsize=8)
        axis.locator_params(axis="x", nbins=5)
        axis.xaxis.set_major_formatter("{x:,.6g}")
        axis.set(xlim=(0, None), ylim=(-0.7, len(rows) - 0.3))
        axis.grid(axis="x", alpha=0.3)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    return figure


def show(section: Section, file: Path) -> list[str]:
    """A file's chart, and its rows, folded; what is alike in all rows of when and where stands above them."""
    frame = pl.read_csv(file, infer_schema_length=None)
    shown = frame.filter(section.chart.rows if section.chart else False)
    chart = [picture(png(draw(section.chart, shown)), str(draw.__doc__))] if len(shown) else []
    common = [name for name in CIRCUMSTANCES if name in frame.columns and frame[name].n_unique() == 1]
    caption = "; ".join([file.name, *(f"{name} {frame[name][0]}" for name in common)])
    rows = frame.drop(common)
    lines = [[f"L{number}", *("" if x is None else str(x) for x in row)] for number, row in enumerate(rows.rows(), 2)]
    summary = f"<summary>{html.escape(file.name)}: {len(rows)} rows</summary>"
    return [*chart, f"<details>{summary}{table(['line', *rows.columns], lines, caption)}</details>"]


def main() -> None:
    parts = [paragraph("A figure is the median of repeats in which candidates took turns; compare within one file.")]
    for section in SECTIONS:
        parts += [heading(section.title), paragraph(f"{section.text} Command: python -m benchmarks.{section.program}")]
        file = RESULTS / f"{section.name}.csv"
        parts += show(section, file) if file.is_file() else [paragraph(f"Not yet measured: there is no {file.name}.")]
    PAGE.write_text(page("torchrec_mtl: benchmarks", parts), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
