"""A report's page: what is wider than the page scrolls within it, and text is text."""

import re

from torchrec_mtl.jobs.compare import html


def test_a_page_is_no_wider_than_a_phone():
    """Seen in a browser at 390 px; here, that all which can be wide is in what scrolls, wraps or shrinks."""
    wide = html.table(["", *"abcdefgh"], [["model", *["0.1234 ± 0.0001"] * 8]], "what <it> shows")
    page = html.page("title", [wide, html.picture(b"png", "dots"), html.preformatted("x" * 500, "settings")])
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert page.count("<table>") == len(re.findall(r'<div tabindex="0"><table>', page)) == 1
    for rule in ("figure > div { overflow-x: auto; }", "img { max-width: 100%; }", "overflow: auto;", "break-word"):
        assert rule in page
    assert "<figcaption>what &lt;it&gt; shows</figcaption>" in page


def test_rows_with_a_rule_have_a_line_above():
    rows = re.findall("<tr.*?>", html.table(["a"], [["1"], ["2"], ["3"]], "", rules=[1]))
    assert rows == ["<tr>", "<tr>", "<tr class=rule>", "<tr>"]


def test_a_value_that_is_not_there_is_a_dash():
    assert [html.number(value, ".2f") for value in (1.0, None, float("nan"))] == ["1.00", "-", "-"]
