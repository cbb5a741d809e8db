"""Faults put into the sources of the CUDA C++ kernels: the tests must find them."""

import shutil
from pathlib import Path

import pytest

from torchrec_mtl.ops.inducing_attention.cuda import build, instances


def put(name: str, right: str, wrong: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Lets the kernels be built, in ``folder``, from sources in whose file ``name`` ``wrong`` stands for ``right``."""
    sources = shutil.copytree(instances.SOURCE.parent, folder / "cuda")
    text = (sources / name).read_text(encoding="utf-8")
    assert right in text
    (sources / name).write_text(text.replace(right, wrong), encoding="utf-8")
    for module in (instances, build):
        monkeypatch.setattr(module, "SOURCE", sources / "kernels.cu")
    monkeypatch.setattr(instances, "_sources", lambda: f"{right} {wrong}".encode())
    monkeypatch.setattr(instances, "_LOADED", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
