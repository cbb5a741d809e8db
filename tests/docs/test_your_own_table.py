"""docs/your_own_table.md, by its notebook: every cell runs as it stands, and prints what the page says."""

import contextlib
import io
import json
from pathlib import Path

from docs.notebook import NOTEBOOK, PLACE, notebook
from tests.docs.pages import ROOT, check, printed


def test_the_notebook_is_the_page():
    assert NOTEBOOK.read_text(encoding="utf-8") == notebook()


def test_the_cells(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    num_checked, names = 0, {}
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        source, said = "".join(cell["source"]), "".join("".join(output["text"]) for output in cell["outputs"])
        magic, _, rest = source.partition("\n")
        if source == PLACE:  # it goes to a folder such as this one
            continue
        if magic == "%%writefile shop.py":
            Path("shop.py").write_text(rest + "\n")
        elif magic.startswith("!"):
            assert not rest
            check(said, printed(magic[1:].replace("{root}", str(ROOT))))
            num_checked += 1
        else:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(source, names)
            assert out.getvalue() == said
            num_checked += 1
    assert num_checked == 11
