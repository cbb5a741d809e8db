"""The site's source: every page has its place, every link leads somewhere, and one that does not is refused."""

import csv
import html
import re

import pytest

from docs.site import pages
from tests.docs.pages import ROOT


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Where the site's source is laid out."""
    monkeypatch.setattr(pages, "SOURCE", tmp_path / "source")
    monkeypatch.setattr(pages, "AS_IT_IS", tmp_path / "files")
    return tmp_path / "source"


def test_every_page_is_in_the_contents_and_no_link_leaves_the_site(source):
    pages.lay_out()
    index = (source / "index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert re.search(rf"^(.* <)?{page.stem}>?$", index, re.M), page.name
    for page in source.rglob("*.md"):
        text = pages.FENCE.sub("", page.read_text(encoding="utf-8"))
        for found in [match[3] for match in pages.LINK.finditer(text)] + re.findall(r'href="([^"#:]+)[#"]', text):
            place = page.parent / re.sub(r"\.html$", ".md", found)
            as_it_is = source.parent / "files" / page.parent.relative_to(source) / found
            assert place.exists() or as_it_is.resolve().exists(), f"{page} links to {found}"


def test_a_figure_leads_to_its_row():
    path = "benchmarks/results/over_arches.csv"
    link = f'href="source/{path}.html#L15"'
    assert link in pages.rewritten(f"[0.99](../{path}#L15)", "docs/speed.md")
    (row,) = re.findall(r'<tr id="L15">(.*)</tr>', pages.shown(path))
    with (ROOT / path).open() as lines:
        cells = list(csv.reader(lines))[14]
    assert [html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", row)] == ["15", *cells]


@pytest.mark.parametrize(
    ("link", "of_site"),
    [
        ("[a](spark.md#b)", "[a](spark.md#b)"),
        ("[a](../README.md)", "[a](index.md)"),
        ("[a](../examples/own_over_arch.py#main)", "[a](source/examples/own_over_arch.py.md)"),
        ("![a](report.png)", "![a](report.png)"),
        ("[a](https://b.org/c.md)", "[a](https://b.org/c.md)"),
        ("```\n[a](../README.md)\n```", "```\n[a](../README.md)\n```"),
    ],
)
def test_a_link_is_as_on_the_site(link, of_site):
    assert pages.rewritten(link, "docs/data.md") == of_site


@pytest.mark.parametrize("link", ["[a](gone.md)", "![a](gone.png)", "[1](a.csv#L3)", "[a](../docs/gone)"])
def test_a_link_to_nothing_is_refused(source, tmp_path, monkeypatch, link):
    (tmp_path / "docs").mkdir()
    for name in (*pages.NAMED, "docs/page.md"):
        (tmp_path / name).write_text("# x\n")
    (tmp_path / "docs" / "a.csv").write_text("b\n1\n")
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "REFERENCE", [])
    pages.lay_out()
    (tmp_path / "docs" / "page.md").write_text(link)
    with pytest.raises(FileNotFoundError, match=r"docs/page.md links to docs/(gone|a.csv#L3)"):
        pages.lay_out()
