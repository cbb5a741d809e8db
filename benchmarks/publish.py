"""Puts a comparison's report into the texts: ``python -m benchmarks.publish runs/compare/complete_journey_unread-0.2``.

The folder is one that ``torchrec-mtl compare`` has written a report to. Its files go to a folder of
``benchmarks/results``, by default ``complete_journey``. The tables of AUCs in the README there get its figures, and if
it is ``complete_journey``, those in the README and in ``docs`` too. A link from any of these texts to a line of the
``comparison.csv`` there was goes to the line that says the same in the new one, with its figure. What the texts say
beside figures is not touched: read it again.
"""

import argparse
import base64
import csv
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.record import RESULTS, ROOT, Row

MAIN = RESULTS / "complete_journey"  # the comparison whose tables texts elsewhere show too
FILES = ("comparison.csv", "report.html", "settings.json")
EFFICIENCY = "efficiency.json"  # of a comparison that has measured times
TEXTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
AUCS = {"all impressions": "auc", "conditional": "conditional_auc", "marginal": "marginal_auc"}  # by a caption's end
SYSTEMS, CHANGED = "test AUC", "one thing changed in"  # how the first cell of a table starts
LINK = re.compile(r"\[([^\]]*)\]\((\S*\.csv)#L(\d+)\)")
FIGURE = re.compile(r"\d*\.\d+(?: ± \d*\.\d+)?")


def key(row: Mapping[str, str]) -> tuple[str, str, str]:
    """What a row of ``comparison.csv`` is about."""
    return row["model"], row["task"], row["metric"]


def mean(row: Mapping[str, str], zero: bool = False, digits: int = 4) -> str:
    """Mean and deviation over seeds, with a zero before the point or without."""
    cells = (f"{float(row[name]):.{digits}f}" for name in ("mean", "std"))
    return " ± ".join(cell if zero else cell.lstrip("0") for cell in cells)


def with_tables(text: str, rows: Sequence[Row]) -> str:
    """A text whose tables of AUCs have the figures of ``rows``.

    Where the best of a column is in bold, it is so again, and every system without an ``ablation_of`` has its line;
    otherwise lines stay which they are. A table of one thing changed has a line for everything whose ``ablation_of``
    has that title.
    """

    def filled(found: re.Match[str]) -> str:
        header, rule, *lines = found.group().splitlines()
        caption, *tasks = cells_of(header)
        if caption.startswith(CHANGED):
            return "\n".join([header, rule, *changed_lines(caption.removeprefix(CHANGED).split(",")[0], tasks, rows)])
        metric = AUCS[caption.rpartition(", ")[2]]
        table = [row for row in rows if row["metric"] == metric and row["task"] in tasks]
        titles = [cells_of(line)[0] for line in lines]
        whole = "**" in found.group()
        if whole:
            titles = list(dict.fromkeys(row["title"] for row in table if not row["ablation_of"]))
        by_place = {(row["title"], row["task"]): row for row in table if not row["ablation_of"]}
        best = {task: max(float(row["mean"]) for (_, t), row in by_place.items() if t == task) for task in tasks}
        written = []
        for title in titles:
            cells = [title]
            for task in tasks:
                cell = mean(by_place[title, task], zero=not whole)
                top = f"{best[task]:.4f}".lstrip("0")
                cells.append(re.sub(rf"^{re.escape(top)}", f"**{top}**", cell) if whole else cell)
            written.append(line_of(cells))
        return "\n".join([header, rule, *written])

    return re.sub(rf"^\| (?:{SYSTEMS}|{CHANGED})[^\n]*(?:\n\|[^\n]*)+", filled, text, flags=re.M)


def changed_lines(title: str, tasks: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """The AUC over all impressions of the system of this title, and of all that differ from it in one thing."""
    of_impressions = [row for row in rows if row["metric"] == "auc" and row["task"] in tasks]
    (system,) = {row["model"] for row in of_impressions if row["title"] == title.strip()}
    found: dict[str, list[str]] = {}
    for row in of_impressions:
        if row["model"] == system:
            found.setdefault(row["title"], [row["title"]]).append(mean(row))
    for row in of_impressions:
        if row["ablation_of"] == system:
            p = f"{float(row['p_holm']):.2g}".lstrip("0") if row["p_holm"] else "not defined"
            against = f"{float(row['difference']):+.4f}, p {p}".replace("0.", ".", 1)
            found.setdefault(row["title"], [row["title"]]).append(f"{mean(row)} ({against})")
    return [line_of(cells) for cells in found.values()]


def cells_of(line: str) -> list[str]:
    """The cells of a line of a table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def line_of(cells: Sequence[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def with_links(text: str, file: str, old: Sequence[Row], new: Sequence[Row]) -> str:
    """A text in which each link to a line of ``old`` goes to the line of ``new`` about the same model, task and metric.

    Args:
        file: how the path of such a link ends; other links stay.
    """
    lines = {key(row): number for number, row in enumerate(new, 2)}

    def linked(found: re.Match[str]) -> str:
        words, path, line = found.groups()
        if not f"/{path}".endswith(f"/{file}"):
            return found.group()
        about = key(old[int(line) - 2])
        if about not in lines:
            sys.exit(f"error: the comparison has no line of {', '.join(about)}, which a text links to: [{words}]")
        place = lines[about]
        words = FIGURE.sub(lambda figure: shown_as(figure.group(), new[place - 2]), words)
        return f"[{words}]({path}#L{place})"

    return LINK.sub(linked, text)


def shown_as(figure: str, row: Row) -> str:
    """A row's figure in the form of ``figure``: a zero before the point or not, as many digits, a spread or not."""
    digits = len(re.split(r"\D", figure)[-1])
    written = mean(row, zero=figure.startswith("0"), digits=digits)
    return written if "±" in figure else written.partition(" ")[0]


def read(text: str) -> list[Row]:
    """The rows of a CSV file."""
    return list(csv.DictReader(text.splitlines()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the report's folder")
    parser.add_argument("--to", default=MAIN.name, help="folder of benchmarks/results (%(default)s)")
    arguments = parser.parse_args()
    source, target = arguments.folder, RESULTS / arguments.to
    old, new = (read((each / FILES[0]).read_text(encoding="utf-8")) for each in (target, source))
    readme = target / "README.md"
    texts = {path: path.read_text(encoding="utf-8") for path in (*TEXTS, readme)}
    for path, text in texts.items():
        tabled = with_tables(text, new) if path == readme or target == MAIN else text
        texts[path] = with_links(tabled, FILES[0] if path == readme else f"{target.name}/{FILES[0]}", old, new)
    for name in (*FILES, *[EFFICIENCY] * (source / EFFICIENCY).is_file()):
        shutil.copy(source / name, target / name)
    picture, *_ = re.findall(r'src="data:image/png;base64,([^"]+)"', (source / "report.html").read_text())
    (target / "auc.png").write_bytes(base64.b64decode(picture))
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    print(f"{target}: {len(new)} rows; the pages of the models are next: python docs/model_pages.py")


if __name__ == "__main__":
    main()
