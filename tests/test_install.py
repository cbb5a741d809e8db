"""The package as others get it, installed outside its sources; and the pinned requirements around it."""

import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import torchrec_mtl
from tests import versions
from torchrec_mtl import stack
from torchrec_mtl.stack import check_versions

ROOT = Path(__file__).parents[1]
PINNED = [  # on this Python
    requirement
    for file in (ROOT / "requirements").glob("*.txt")
    for line in re.findall(r"^[\w.-]+==.+$", file.read_text(), re.MULTILINE)
    if (requirement := Requirement(line)).marker is None or requirement.marker.evaluate()
]
PINS = {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in PINNED}

LEARNS = """
import torch
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec_mtl import MultiTaskTrain, TaskChain
from torchrec_mtl.data import MultiTaskBatch
from torchrec_mtl.losses import CrossEntropyLoss
from torchrec_mtl.models import TAFE
from torchrec_mtl.modules import FeatureArch
torch.manual_seed(0)
tasks = TaskChain(["click", "purchase"])
table = EmbeddingBagConfig(name="t", embedding_dim=8, num_embeddings=9, feature_names=["item", "user"])
model = MultiTaskTrain(TAFE(FeatureArch(EmbeddingBagCollection(tables=[table])), tasks), CrossEntropyLoss(tasks))
ids = KeyedJaggedTensor.from_lengths_sync(["item", "user"], torch.arange(16) % 9, torch.ones(16, dtype=torch.int))
labels = (torch.arange(8) % 2).float()[:, None].expand(8, 2)
batch = MultiTaskBatch(dense_features=torch.zeros(8, 0), sparse_features=ids, labels=labels)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for step in range(20):
    loss = model(batch)[0]
    if step in (0, 19):
        print(loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def pip_install(*arguments: str | Path) -> str:
    """What ``pip install`` says, without a network."""
    command = [sys.executable, "-m", "pip", "install", "--no-index", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def is_pinned(requirement: Requirement) -> bool:
    name = canonicalize_name(requirement.name)
    return name in PINS and requirement.specifier.contains(PINS[name])


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, installed by way of a source distribution and a wheel from a copy of its sources."""
    source = tmp_path_factory.mktemp("source")
    target = tmp_path_factory.mktemp("target")
    for name in ("LICENSE", "README.md", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "torchrec_mtl", source / "torchrec_mtl", ignore=shutil.ignore_patterns("prebuilt"))
    build = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (distribution,) = (source / "dist").iterdir()
    pip_install("--no-deps", "--no-build-isolation", "--target", target, distribution)
    return target


def asked_for(installed: Path) -> list[Requirement]:
    (info,) = installed.glob("torchrec_mtl-*.dist-info")
    return [Requirement(text) for text in metadata.Distribution.at(info).requires or []]


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
        module = importlib.import_module(name)
        print(module.__file__)
        for public in getattr(module, "__all__", ()):
            getattr(module, public)
for warning in caught:
    if "torchrec_mtl" in warning.filename:
        print(warning)
"""
    assert run_python(script, installed, *names) == [str(installed / file) for file in files]
    assert (installed / "torchrec_mtl" / "py.typed").is_file()


def test_a_model_of_the_installed_package_learns(installed: Path) -> None:
    loss, later = map(float, run_python(LEARNS, installed))
    assert later < loss


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
    requirements = asked_for(installed)
    assert {"numpy", "torchrec", "torchx"} <= {requirement.name for requirement in requirements}
    # pinned elsewhere: Spark where its tests make an environment, the newest PyTorch in the extras themselves
    # and MLflow nowhere
    elsewhere = re.compile(r"pyspark|.*; extra == ['\"](cpu|cuda|mlflow)['\"]")
    assert [str(each) for each in requirements if not is_pinned(each) and not elsewhere.match(str(each))] == []


def test_the_metadata_say_what_is_supported(installed: Path) -> None:
    info = metadata.Distribution.at(next(installed.glob("torchrec_mtl-*.dist-info")))
    classified = re.findall(r"Python :: (3\.\d+)", str(info.metadata.get_all("Classifier")))
    assert tuple(classified) == versions.PYTHONS
    assert SpecifierSet(info.metadata["Requires-Python"]) == SpecifierSet(">=3.10,<3.14")
    ranges = {each.name: each for each in asked_for(installed) if each.marker and "torchrec" in str(each.marker)}
    for triple in versions.TRIPLES:
        assert ranges["torch"].specifier.contains(triple.torch)
        assert ranges["torchrec"].specifier.contains(triple.torchrec)
        check_versions({"torch": triple.torch, "torchrec": triple.torchrec, "fbgemm-gpu": triple.fbgemm})
    assert [stack._minor(triple.torch) for triple in versions.TRIPLES] == list(stack.GO_TOGETHER)
    for extra, build in (("cpu", "fbgemm-gpu-cpu"), ("cuda", "fbgemm-gpu")):
        given = {each.name: each for each in asked_for(installed) if each.marker and f'"{extra}"' in str(each.marker)}
        newest = versions.TRIPLES[-1]
        for name, version in (("torch", newest.torch), ("torchrec", newest.torchrec), (build, newest.fbgemm)):
            assert given[name].specifier.contains(version)
    assert versions.table() in versions.PAGE.read_text()
    assert versions.PINNED[0] == PINS["torch"]
    page = (ROOT / "docs" / "installation.md").read_text()
    described = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.+?) \|", page, re.MULTILINE)))
    assert set(described) == set(info.metadata.get_all("Provides-Extra") or [])


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
