"""The container image's recipe: what goes in, and as whom it runs."""

import re
import shutil
from pathlib import Path

from docker.utils import exclude_paths

from tests.versions import PYTHONS, TRIPLES

ROOT = Path(__file__).parents[2]
RECIPE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_only_what_an_image_needs_goes_in(tmp_path):
    shutil.copy(ROOT / ".dockerignore", tmp_path)
    wanted = ["setup.py", "requirements/cpu.txt", "torchrec_mtl/jobs/train.py", "torchrec_mtl/py.typed"]
    unwanted = [".env", ".git/config", "runs/first/config.json", "data/train.parquet", "torchrec_mtl/__pycache__/a.pyc"]
    for name in (*wanted, *unwanted):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    context = exclude_paths(str(tmp_path), patterns)
    assert set(wanted) <= context
    assert not context & set(unwanted)


def test_what_the_program_is_installed_from_goes_in():
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    for name in ("LICENSE", "README.md", "pyproject.toml", "setup.py", "requirements", "torchrec_mtl", "benchmarks"):
        assert f"!{name}" in patterns
        assert (ROOT / name).exists()


def test_packages_are_the_newest_that_go_together_and_the_pinned_ones():
    given = dict(re.findall(r"^ARG (\w+)=([\d.]+)$", RECIPE, re.MULTILINE))
    newest = TRIPLES[-1]
    assert given == {"TORCH": newest.torch, "TORCHREC": newest.torchrec, "FBGEMM": newest.fbgemm}
    assert re.search(r"^FROM python:(\S+)-slim", RECIPE, re.MULTILINE)[1] == PYTHONS[-1]
    left_out = re.search(r"sed -E '/(.+)/d' requirements/common.txt", RECIPE)[1]
    pinned = re.findall(r"^[\w.-]+==", (ROOT / "requirements" / "common.txt").read_text(), re.MULTILINE)
    assert [name for name in pinned if re.match(left_out, name)] == ["torch==", "torchrec=="]


def test_it_does_not_run_as_root():
    users = re.findall(r"^USER (\S+)$", RECIPE, re.M)
    assert users == ["trainer"]
    assert re.search(r"useradd .*--uid [1-9]\d* trainer", RECIPE)
