"""Building the library of C++ kernels."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from torchrec_mtl.errors import InputError
from torchrec_mtl.ops.build import build

ROOT = Path(__file__).parents[2]


def test_without_a_compiler_the_build_says_so(tmp_path):
    environment = {**os.environ, "CXX": "no-such-compiler", "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "torchrec_mtl.ops.build"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == (
        "error: there is no compiler `no-such-compiler`: install GCC or Clang, or name one in the variable CXX"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("has_nvcc", [True, False])
def test_make_kernels_builds_those_of_the_cpu_and_with_nvcc_those_of_the_page(tmp_path, has_nvcc):
    """What `make` calls, by a Python that writes its arguments down."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "setup.py").touch()
    python, installed = tmp_path / "python", tmp_path / "installed"
    for tool in [python, *[tmp_path / "nvcc"] * has_nvcc]:
        tool.write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(str(tmp_path / "calls"))}\n')
        tool.chmod(0o755)
    installed.touch()  # newer than these, so the environment is not made
    environment = {"PATH": str(tmp_path)}
    command = [shutil.which("make"), "kernels", f"BIN={tmp_path}", f"INSTALLED={installed}"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    cpu, *gpu = (tmp_path / "calls").read_text().splitlines()
    assert cpu == "-W ignore -m torchrec_mtl.ops.build"
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    of_page = re.findall(r"^python (-m torchrec_mtl\.ops\.inducing_attention\.cuda\.build .*)$", page, re.M)
    assert len(of_page) == 2
    assert gpu == [f"-W ignore {line}" for line in of_page] * has_nvcc
    said = "kernels: there is no nvcc, so none are built for GPUs, where Triton takes their place; CUDA 13 has it\n"
    assert result.stderr == ("" if has_nvcc else said)


COMPUTE = """
import torch
from torchrec_mtl import ops
x, weights = torch.randn(5, 3, 4), torch.randn(3, 4, 4)
torch.testing.assert_close(*(ops.attention(x, x, *weights, backend=name) for name in ("cpp", "reference")))
print("equal")
"""


@pytest.mark.verify
@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no compiler `c++`")
def test_what_is_built_is_loaded(tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    for command in (["-m", "torchrec_mtl.ops.build"], ["-c", COMPUTE]):
        done = subprocess.run([sys.executable, *command], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout == "equal\n"


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A slow compiler; returns a function that sets its last command, and the folder of the library."""
    script = tmp_path / "c++"
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def set_command(command):
        script.write_text(f'#!/bin/sh\nfor output; do :; done\necho half > "$output"\nsleep 0.2\n{command}\n')
        script.chmod(0o755)

    return set_command, tmp_path / "cache" / "torchrec_mtl"


def test_simultaneous_builds_publish_whole_libraries(compiler):
    set_command, folder = compiler
    set_command('echo whole > "$output"')
    with ThreadPoolExecutor(3) as pool:
        paths = list(pool.map(lambda _: build(), range(3)))
    assert {path.read_text() for path in paths} == {"whole\n"}
    assert list(folder.iterdir()) == [paths[0]]


def test_a_failed_build_leaves_nothing(compiler):
    set_command, folder = compiler
    set_command("echo 'attention.cpp:1: no' >&2; exit 1")
    with pytest.raises(InputError, match=r"failed:\nattention\.cpp:1: no"):
        build()
    assert list(folder.iterdir()) == []
