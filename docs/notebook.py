"""Writes docs/your_own_table.ipynb, the first tutorial as a notebook: ``python docs/notebook.py``.

What the page says is its text, what the page types are its cells, and what the page prints is their output.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("your_own_table.md")
NOTEBOOK = PAGE.with_suffix(".ipynb")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.M)
PLACE = """import os, tempfile

root = os.path.dirname(os.getcwd())  # of the clone, if this is run in docs/
os.chdir(tempfile.mkdtemp())
os.environ.pop("MPLBACKEND", None)  # the notebook's, which programs that it starts may not have"""


def code(source: str, printed: str = "") -> dict[str, Any]:
    """A cell of code and what it printed."""
    outputs = [{"output_type": "stream", "name": "stdout", "text": printed.splitlines(True)}] if printed else []
    cell = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": outputs}
    return {**cell, "source": source.rstrip("\n").splitlines(True)}


def cells(page: str) -> Iterator[dict[str, Any]]:
    """The page's cells in order."""
    yield code(PLACE)
    end = 0
    for block in BLOCK.finditer(page):
        kind, text = block.groups()
        between, end = page[end : block.start()].strip(), block.end()
        if between:
            yield {"cell_type": "markdown", "metadata": {}, "source": between.splitlines(True)}
        if kind == "console":
            for command, printed in COMMAND.findall(text):
                yield code("!" + command.replace("python examples/", "python {root}/examples/"), printed)
        elif kind == "text":
            continue  # the output of the cell before, which has it
        elif text.startswith("# shop.py\n"):
            yield code("%%writefile shop.py\n" + text)
        else:
            after = BLOCK.search(page, end)
            yield code(text, after[2] if after and after[1] == "text" else "")
    yield {"cell_type": "markdown", "metadata": {}, "source": page[end:].strip().splitlines(True)}


def notebook() -> str:
    """The whole notebook, as its file has it."""
    found = [cell for cell in cells(PAGE.read_text(encoding="utf-8")) if cell["source"]]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    numbered = [{"id": f"cell-{number}", **cell} for number, cell in enumerate(found)]
    whole = {"cells": numbered, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook(), encoding="utf-8")
