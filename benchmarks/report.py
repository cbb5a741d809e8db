"""One page of all results, with charts: ``make bench-report`` makes ``benchmarks/results/report.html``.

Everything on it comes from the CSV files beside it. A row is called by its line there: ``data_reading.csv#L3``, as a
link on GitHub has it, and as the README refers to it.
"""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from matplotlib.figure import Figure

from benchmarks import charts
from benchmarks.record import CIRCUMSTANCES, RESULTS
from torchrec_mtl.jobs.compare.html import heading, page, paragraph, picture, table

PAGE = RESULTS / "report.html"


@dataclass(frozen=True)
class Section:
    """A CSV file's part of the page.

    Args:
        name: of the file.
        title: a heading.
        text: what was measured, how to read the chart, and the command.
        draw: the chart; none for a table alone.
    """

    name: str
    title: str
    text: str
    draw: Callable[[pl.DataFrame], Figure] | None = None


SECTIONS = (
    Section(
        "inducing_attention_cpu",
        "TAFE's attention on a CPU",
        "Milliseconds of one thread's CPU time for the stack at the paper's size, by the share of points selected; and "
        "whole steps beside Shared-Bottom. python -m benchmarks.inducing_attention_cpu",
        charts.attention,
    ),
    Section(
        "gpu_inducing_attention",
        "TAFE's attention on a GPU",
        "Microseconds of the stack. python -m benchmarks.gpu_inducing_attention",
        charts.gpu_attention,
    ),
    Section(
        "data_preparation",
        "Preparing Ali-CCP",
        "Rows a second from generated raw files to what is trained on, beside a plain Python reading of the AITM "
        "authors' steps. python -m benchmarks.data_preparation",
        charts.preparation,
    ),
    Section(
        "data_reading",
        "Reading",
        "Samples a second that one reader hands out, beside what Shared-Bottom trains at. "
        "python -m benchmarks.data_reading",
        charts.reading,
    ),
    Section(
        "counts",
        "What a step does, whatever the clock",
        "Counts of one step of each system at a fixed small size, which every change is held to. "
        "python -m benchmarks.counts",
    ),
)


def circumstances(frame: pl.DataFrame) -> tuple[str, pl.DataFrame]:
    """What all rows have in common of where and when, in a line; and the rows without it."""
    common = [name for name in CIRCUMSTANCES if frame[name].n_unique() == 1]
    line = "; ".join(f"{name} {frame[name][0]}" for name in common)
    return line, frame.drop(common)


def section(of: Section, file: Path) -> list[str]:
    """Its pieces of HTML; that it has not been measured yet, where there is no file."""
    parts = [heading(of.title), paragraph(of.text)]
    if not file.is_file():
        return [*parts, paragraph(f"Not yet measured: there is no {file.name}.")]
    frame = pl.read_csv(file, infer_schema_length=None)
    line, rows = circumstances(frame)
    if of.draw is not None:
        parts.append(picture(charts.png(of.draw(frame)), f"{of.title}: medians, lines from p20 to p80"))
    lines = [[f"L{number}", *_cells(row)] for number, row in enumerate(rows.iter_rows(), 2)]
    all_rows = table(["line", *rows.columns], lines, f"{file.name}. {line}")
    return [*parts, f"<details><summary>{html.escape(file.name)}: {len(rows)} rows</summary>{all_rows}</details>"]


def _cells(row: Sequence[object]) -> list[str]:
    return ["" if cell is None else f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row]


def main() -> None:
    parts = [paragraph("Each figure is a median of repeats in which candidates took turns; compare within one file.")]
    for of in SECTIONS:
        parts += section(of, RESULTS / f"{of.name}.csv")
    PAGE.write_text(page("torchrec_mtl: benchmarks", parts), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
