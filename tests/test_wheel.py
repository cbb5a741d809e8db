"""A wheel brings the kernels, compiled for each kind of processor, so that users need no compiler."""

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests import VERIFY
from torchrec_mtl.ops import library

ROOT = Path(__file__).parents[1]
CAPABILITIES = {"x86-64-v2": "default", "x86-64-v3": "avx2", "x86-64-v4": "avx512"}

PROGRAM = """
import torch
import torchrec_mtl
from torchrec_mtl import ops
from torchrec_mtl.ops import library
x, weights = torch.randn(5, 3, 4), torch.randn(3, 4, 4)
torch.testing.assert_close(*(ops.attention(x, x, *weights, backend=name) for name in ("cpp", "reference")))
print(torchrec_mtl.__file__, library.path().parent.name)
"""


@pytest.mark.verify
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no compiler `c++`")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="kernels are prebuilt for x86-64")
def test_an_installed_wheel_has_its_kernels(tmp_path):
    source, installed = tmp_path / "source", tmp_path / "installed"
    shutil.copytree(ROOT / "torchrec_mtl", source / "torchrec_mtl", ignore=shutil.ignore_patterns("prebuilt"))
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(source)}

    def run(*command):
        done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    python = (sys.executable, "-W", "ignore")
    processors = library.PROCESSORS if VERIFY else (library.this_processor(),)
    run(*python, "-m", "torchrec_mtl.ops.build", "--prebuilt", *processors)
    run(*python, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, ".")
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert sum(name.endswith(".so") for name in names) == len(processors)
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "examples"))]
    run(*python, "-m", "pip", "install", "-q", "--no-deps", "--target", installed, wheel)
    environment["PYTHONPATH"] = str(installed)
    shutil.rmtree(source / "torchrec_mtl")
    usable = library.PROCESSORS[: library.PROCESSORS.index(library.this_processor()) + 1]
    for processor in set(usable) & set(processors):  # PyTorch then takes such a processor to be this machine's
        environment["ATEN_CPU_CAPABILITY"] = CAPABILITIES[processor]
        package, folder = run(*python, "-c", PROGRAM).split()
        assert Path(package).is_relative_to(installed)
        assert folder == "prebuilt"
    assert not (tmp_path / "cache").exists()
