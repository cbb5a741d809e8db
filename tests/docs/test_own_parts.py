"""docs/own_parts.md: its parts train as they stand, and print what the page says."""

from pathlib import Path

from tests.docs.pages import BLOCK, COMMAND, ROOT, check, printed

PAGE = ROOT / "docs" / "own_parts.md"


def test_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    num_commands = 0
    for kind, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if kind == "python":
            Path("mine.py").write_text(text)
        for command, said in COMMAND.findall(text if kind == "console" else ""):
            check(said, printed(command))
            num_commands += 1
    assert num_commands == 4
