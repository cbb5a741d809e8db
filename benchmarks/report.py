"""One page of all results, with charts: ``make bench-report`` makes ``benchmarks/results/report.html``.

Everything on it comes from the CSV files beside it. A row is called by its line there: ``data_reading.csv#L3``, as a
link on GitHub has it, and as the README refers to it.
"""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
from matplotlib.figure import Figure

from benchmarks import charts
from benchmarks.record import CIRCUMSTANCES, RESULTS
from torchrec_mtl.jobs.compare.figures import png
from torchrec_mtl.jobs.compare.html import heading, page, paragraph, picture, table

PAGE = RESULTS / "report.html"


@dataclass(frozen=True)
class Section:
    """A CSV file's part of the page.

    Args:
        name: of the file.
        title: a heading.
        text: what was measured, how to read the chart, and the command.
        draw: the charts; none for a table alone.
    """

    name: str
    title: str
    text: str
    draw: tuple[Callable[[pl.DataFrame], Figure], ...] = ()


_EMBEDDINGS = Section(
    "embedding_throughput",
    "Embedding throughput",
    "Lookups and updates of Criteo's tables, a batch a step, beside what a plain copy reaches; docs/"
    "embedding_throughput.md says what to choose. python -m benchmarks.embedding_throughput",
    (charts.throughput,),
)
_STEP = Section(
    "training_step",
    "A training step, taken apart",
    "What each model's step costs and in which part, how it grows when one thing of the workload does, TAFE's "
    "figure 8, and our loop beside bare TorchRec. python -m benchmarks.training_step",
    (charts.step_parts, charts.step_growth, charts.step_figure_8),
)


def _on_a_gpu(of: Section) -> Section:
    text = of.text.rpartition("python -m")[0] + "python -m benchmarks.gpu"
    return replace(of, name=f"{of.name}_cuda", title=f"{of.title}, on a GPU", text=text)


SECTIONS = (
    _EMBEDDINGS,
    _on_a_gpu(_EMBEDDINGS),
    _STEP,
    _on_a_gpu(_STEP),
    Section(
        "peers",
        "Other libraries",
        "The same models of other libraries: samples per second of processor time, memory, and AUC after equal steps. "
        "python -m benchmarks.peers",
        (charts.peers_speed,),
    ),
    Section(
        "inducing_attention_cpu",
        "TAFE's attention on a CPU",
        "Milliseconds of one thread's processor time for the stack at the paper's size; and whole steps beside "
        "Shared-Bottom. python -m benchmarks.inducing_attention_cpu",
        (charts.attention,),
    ),
    Section(
        "inducing_attention_cuda",
        "TAFE's attention on a GPU",
        "Microseconds of the stack. python -m benchmarks.gpu",
        (charts.gpu_attention,),
    ),
    Section(
        "scaling_measured",
        "Our loop beside bare TorchRec, several processes",
        "TorchRec's DLRM, the same sharding and weights; docs/scaling.md. python -m benchmarks.scaling",
    ),
    Section(
        "data_preparation",
        "Preparing Ali-CCP",
        "Rows a second from generated raw files to what is trained on, beside a plain Python reading of the AITM "
        "authors' steps. python -m benchmarks.data_preparation",
        (charts.preparation,),
    ),
    Section(
        "data_reading",
        "Reading",
        "What one reader hands out, beside what Shared-Bottom trains at. python -m benchmarks.data_reading",
        (charts.reading,),
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
    for draw in of.draw:
        parts.append(picture(png(draw(frame)), str(draw.__doc__)))
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
