"""Runs what a page of docs/ types, and compares what is printed with what the page says."""

import contextlib
import io
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from torchrec_mtl.__main__ import main

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.M)


def printed(command: str) -> str:
    """What a command prints, errors last; our commands and programs run in this process."""
    program, *arguments = shlex.split(command)
    out, err = io.StringIO(), io.StringIO()
    if program not in ("torchrec-mtl", "python"):
        return subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        if program == "torchrec-mtl":
            main(arguments)
        else:
            patch.setattr(sys, "argv", arguments)
            runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
    return out.getvalue() + "".join(line for line in err.getvalue().splitlines(True) if line.startswith("error: "))


def check(said: str, found: str) -> None:
    """Compares what the page says with what was printed: ``...`` is any text; AUCs may differ between processors."""
    lines = [
        re.sub(r"[\d,]+(?= +[\d,]+ +[\w:]+$)", "SPEED", re.sub(r"-{5,}|  +", "  ", line)) for line in said.splitlines()
    ]
    pattern = re.escape("\n".join(lines)).replace(r"\.\.\.", ".*").replace("SPEED", r"[\d,]+")
    pattern = re.sub(r"0\\\.\d{4}", r"(0\\.\\d{4})", pattern)
    match = re.fullmatch(pattern, "\n".join(re.sub(r"-{5,}|  +", "  ", line) for line in found.splitlines()), re.S)
    assert match, found
    for one, other in zip(re.findall(r"0\.\d{4}", "\n".join(lines)), match.groups(), strict=True):
        assert float(one) == pytest.approx(float(other), abs=0.03)
