"""The package as others get it, installed outside its sources; and the pinned requirements around it."""

import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import torchrec_mtl

ROOT = Path(__file__).parents[1]
PINS = {
    canonicalize_name(name): version
    for file in (ROOT / "requirements").glob("*.txt")
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", file.read_text(), re.MULTILINE)
}


def pip_install(*arguments: str | Path) -> str:
    """What ``pip install`` says, without a network."""
    command = [sys.executable, "-m", "pip", "install", "--no-index", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def is_pinned(requirement: Requirement) -> bool:
    name = canonicalize_name(requirement.name)
    return name in PINS and requirement.specifier.contains(PINS[name])


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package installed from a clean copy of its sources, by way of a wheel."""
    source = tmp_path_factory.mktemp("source")
    target = tmp_path_factory.mktemp("target")
    for name in ("LICENSE", "README.md", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "torchrec_mtl", source / "torchrec_mtl")
    pip_install("--no-deps", "--no-build-isolation", "--target", target, source)
    return target


def run_python(script: str, installed: Path, *arguments: str) -> list[str]:
    """The lines that a script prints which sees the installed package before this checkout."""
    script = f"import sys; sys.path.insert(0, {str(installed)!r})\n{script}"
    command = [sys.executable, "-c", script, *arguments]
    run = subprocess.run(command, cwd=installed, check=True, stdout=subprocess.PIPE, text=True)
    return run.stdout.splitlines()


def test_every_module_is_installed_and_imports_without_a_warning_of_ours(installed: Path) -> None:
    files = [path.relative_to(ROOT) for path in sorted((ROOT / "torchrec_mtl").rglob("*.py"))]
    names = [".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files]
    script = """
import importlib, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for name in sys.argv[1:]:
        print(importlib.import_module(name).__file__)
for warning in caught:
    if "torchrec_mtl" in warning.filename:
        print(warning)
"""
    assert run_python(script, installed, *names) == [str(installed / file) for file in files]
    assert (installed / "torchrec_mtl" / "py.typed").is_file()


def test_the_sources_of_the_kernels_are_installed(installed: Path) -> None:
    here, there = (
        {path.relative_to(root) for path in (root / "torchrec_mtl").rglob("*.[ch]pp")} for root in (ROOT, installed)
    )
    assert here == there
    assert here


def test_torchx_finds_our_component_and_still_its_own(installed: Path) -> None:
    script = "from torchx.specs.finder import get_components; print(*get_components(), sep='\\n')"
    assert {"mtl.train", "dist.ddp", "metrics.tensorboard", "serve.torchserve", "utils.sh"} <= set(
        run_python(script, installed)
    )


def test_pins_lie_in_the_ranges_of_the_metadata(installed: Path) -> None:
    (info,) = installed.glob("torchrec_mtl-*.dist-info")
    requirements = [Requirement(text) for text in metadata.Distribution.at(info).requires or []]
    assert {"numpy", "torchrec", "torchx"} <= {requirement.name for requirement in requirements}
    on_spark = Requirement("pyspark").name  # pinned where its tests make an environment: tests/data/table/test_spark.py
    assert [str(each) for each in requirements if not is_pinned(each) and each.name != on_spark] == []


@pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="only .venv holds the pinned versions")
def test_what_pinned_packages_ask_for_is_pinned() -> None:
    asked = [
        (name, Requirement(text))
        for name in PINS
        if any(metadata.distributions(name=name))
        for text in metadata.requires(name) or []
    ]
    asked = [(name, need) for name, need in asked if not need.marker or need.marker.evaluate({"extra": ""})]
    assert len(asked) > 50
    assert [(name, str(need)) for name, need in asked if not is_pinned(need)] == []


def test_torchrec_brings_no_second_build_of_fbgemm() -> None:
    assert len(set(metadata.packages_distributions()["fbgemm_gpu"])) == 1
    assert "Would install" not in pip_install("--dry-run", f"torchrec=={metadata.version('torchrec')}")


def test_the_version_is_the_same_wherever_it_is_told(installed: Path) -> None:
    (distribution,) = metadata.distributions(name="torchrec_mtl", path=[str(installed)])
    assert distribution.version == torchrec_mtl.__version__
    assert f"\nversion: {torchrec_mtl.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {torchrec_mtl.__version__}" in (ROOT / "CHANGELOG.md").read_text()
