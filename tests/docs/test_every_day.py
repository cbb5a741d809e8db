"""docs/every_day.md: every command and program runs as it stands, and prints what the page says."""

import contextlib
import io
import re
import shlex
import subprocess
from pathlib import Path

from torchrec_mtl.__main__ import main

PAGE = Path(__file__).parents[2] / "docs" / "every_day.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.M)


def printed(command: str) -> tuple[int, str]:
    """The status of a command, and what it prints, errors last; ours run in this process."""
    program, *arguments = shlex.split(command)
    if program != "torchrec-mtl":
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
        return done.returncode, done.stdout
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    return status, out.getvalue() + "".join(line for line in err.getvalue().splitlines(True) if line[:6] == "error:")


def test_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    statuses = []
    for kind, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if kind == "python" and text.startswith("# shop.py\n"):
            Path("shop.py").write_text(text)
        elif kind == "python":
            exec(text, {})
        for command, said in COMMAND.findall(text if kind == "console" else ""):
            status, found = printed(command)
            assert re.fullmatch(re.escape(said).replace(r"\.\.\.", ".*"), found), found
            statuses.append(status)
    assert statuses == [0, 0, 3, 0, 2, 2]
