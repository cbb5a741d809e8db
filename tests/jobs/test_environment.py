"""Jobs where an extra is not installed."""

import os
import subprocess
import sys

import pytest

from tests import VERIFY
from torchrec_mtl.__main__ import JOBS

ABSENT = """
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec


def without_the_extra(name, path=None, target=None):
    return None if name in ("tensorboard", "matplotlib") else find_spec(name, path, target)


PathFinder.find_spec = without_the_extra
"""
SENTENCE = 'error: tensorboard and matplotlib must be installed: pip install "torchrec_mtl[report]"\n'
LINES = [([job, "--help"], 0, "") for job in JOBS]
LINES += [(["train", "--show-config"], 0, ""), (["train"], 2, SENTENCE), (["compare"], 2, SENTENCE)]
TRIED = LINES if VERIFY else [LINES[0], LINES[-3], LINES[-1]]


@pytest.mark.parametrize(("line", "status", "told"), TRIED, ids=lambda value: str(value)[:30])
def test_without_the_extra_report_only_a_run_asks_for_it(tmp_path, line, status, told):
    """In an interpreter that finds neither package, as after an installation without the extra."""
    (tmp_path / "sitecustomize.py").write_text(ABSENT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-W", "ignore", "-m", "torchrec_mtl", *line]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == status, done.stderr
    assert done.stderr.endswith(told) if told else "Traceback" not in done.stderr
