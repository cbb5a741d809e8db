"""The pieces of HTML of a report: one file without external links."""

import base64
import html
import math
from collections.abc import Sequence

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 80em; padding: 0 1em; color: #222; }
body { overflow-wrap: break-word; background: #fff; }
figure { margin: 1em 0; font-size: 13px; } figure > div { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
figcaption { font-weight: 600; padding: .4em 0; }
th, td { padding: .25em .7em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; }
tr.rule td { border-top: 2px solid #888; }
@media (max-width: 40em) { td:first-child { white-space: normal; min-width: 7em; } th, td { padding: .25em .4em; } }
h1 { font-size: 1.7em; }
img { max-width: 100%; } pre { background: #f6f6f6; padding: 1em; overflow: auto; font-size: 12px; }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page."""
    body = "\n".join(parts)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def heading(text: str) -> str:
    """The heading of a section."""
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def preformatted(text: str, summary: str) -> str:
    """Preformatted plain text, folded under ``summary``."""
    return f"<details><summary>{html.escape(summary)}</summary><pre>{html.escape(text)}</pre></details>"


def picture(png: bytes, description: str) -> str:
    """A picture embedded in the page."""
    data = base64.b64encode(png).decode()
    text = html.escape(description)
    return f'<p><img alt="{text}" src="data:image/png;base64,{data}"><br>{text}</p>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str, rules: Sequence[int] = ()) -> str:
    """A table of plain texts; where it is wider than the page, it scrolls, and its first column stays.

    Args:
        header: names of the columns.
        rows: cells of each row.
        caption: description of the table.
        rules: numbers of the rows that have a line above them.
    """
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    lines = []
    for number, row in enumerate(rows):
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        lines.append(f"<tr{' class=rule' if number in rules else ''}>{cells}</tr>")
    return (
        f'<figure><figcaption>{html.escape(caption)}</figcaption><div tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div></figure>"
    )


def number(value: float | None, form: str) -> str:
    """The formatted ``value``, or a dash if there is none."""
    return "-" if value is None or math.isnan(value) else format(value, form)
