"""The committed results: their columns, the page made of them, and the figures that texts take from them."""

import csv
import re
from pathlib import Path

import pytest

from benchmarks import record, report

ROOT = record.ROOT
FILES = sorted(record.RESULTS.glob("*.csv"))
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\[([^\]]*)\]\((\S+?\.csv)#L(\d+)\)")
NUMBER = re.compile(r"\d[\d,]*\.?\d*")


def quoted() -> list[tuple[str, str, str, int]]:
    """Text's name, what it quotes, the file, the line."""
    found = []
    for text in TEXTS:
        for words, file, line in LINK.findall(text.read_text(encoding="utf-8")):
            found.append((text.name, words, str((text.parent / file).resolve().relative_to(ROOT)), int(line)))
    return found


def is_among(number: str, cells: list[str]) -> bool:
    """Whether a cell, or one divided by it ("17 times as fast" of a ratio of .058), rounds to ``number``."""
    digits = len(number.partition(".")[2])
    for cell in cells:
        try:
            value = abs(float(cell))
        except ValueError:
            continue
        for candidate in (value, 1 / value if value else 0.0):
            if abs(candidate - float(number.replace(",", ""))) <= 0.5001 * 10**-digits:
                return True
    return False


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_row_tells_its_circumstances(file):
    with file.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert rows
    wanted = [name for name in record.CIRCUMSTANCES if name != "command" or name in rows[0]]
    assert all(row[name] for row in rows for name in wanted)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_has_its_section_in_the_report(file):
    assert file.stem in [section.name for section in report.SECTIONS]


@pytest.mark.parametrize(("text", "words", "file", "line"), quoted(), ids=lambda x: str(x))
def test_a_figure_in_a_text_is_the_one_in_the_row_it_refers_to(text, words, file, line):
    with Path(ROOT / file).open(encoding="utf-8") as lines:
        cells = next(row for number, row in enumerate(csv.reader(lines), 1) if number == line)
    numbers = NUMBER.findall(words)
    assert numbers, f"{text}: [{words}] refers to a row and has no figure"
    assert all(is_among(number, cells) for number in numbers), f"{text}: [{words}] is not in {cells}"


def test_texts_refer_to_rows():
    assert quoted()


@pytest.mark.parametrize(("number", "holds"), [("17", True), ("17.2", True), ("16", False), ("0.058", True)])
def test_a_rounded_figure_or_its_inverse_is_recognised(number, holds):
    assert is_among(number, ["cpp", "", "0.0581"]) is holds


@pytest.mark.verify
def test_the_page_stands_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "PAGE", tmp_path / "report.html")
    report.main()
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    for section in report.SECTIONS:
        assert report.html.escape(section.title) in page
    for file in FILES:
        assert file.name in page
