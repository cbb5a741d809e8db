"""What is missing or does not go together is one sentence with its remedy, wherever a model or a batch is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from torchrec_mtl.errors import InputError
from torchrec_mtl.stack import check_versions

ROOT = Path(__file__).parents[1]
GOOD = {"torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.8.0"}


@pytest.mark.parametrize(
    "versions",
    [
        GOOD,
        {"torch": "2.14.1", "torchrec": "1.9.2", "fbgemm-gpu": "1.9.0"},
        {"torch": "2.13.0", "torchrec": "1.8.0", "fbgemm-gpu": ""},  # a build without metadata
        {"torch": "2.19.0.dev20270101", "torchrec": "1.9.2", "fbgemm-gpu": "1.8.0"},  # not known
    ],
)
def test_what_goes_together_is_taken(versions):
    check_versions(versions)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"torch": None}, r'torch must be installed: pip install "torchrec_mtl\[cpu\]", or "\[cuda\]"'),
        ({"torchrec": None}, "torchrec must be installed: pip install"),
        ({"fbgemm-gpu-cpu": None}, "fbgemm-gpu-cpu or fbgemm-gpu must be installed: pip install"),
        ({"fbgemm-gpu": "1.9.0"}, r"fbgemm-gpu \(=1.9.0\) and fbgemm-gpu-cpu \(=1.8.0\) must not both be installed"),
        (
            {"torchrec": "1.9.2"},
            r"torchrec \(=1.9.2\) must be 1.8, which goes with torch \(=2.13.0\+cpu\): pip install",
        ),
        (
            {"fbgemm-gpu-cpu": "1.9.0"},
            r'fbgemm-gpu-cpu \(=1.9.0\) must be 1.8, .+: pip install --no-deps "fbgemm-gpu-cpu==1.8.\*"',
        ),
        ({"torch": "2.11.0"}, r"torchrec \(=1.8.0\) must be 1.6, which goes with torch \(=2.11.0\)"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(changed, sentence):
    versions = {name: version for name, version in {**GOOD, **changed}.items() if version is not None}
    with pytest.raises(InputError, match=f"^{sentence}[^\n]*$"):
        check_versions(versions)


@pytest.fixture
def second_build(tmp_path: Path) -> str:
    """A program's first lines, with which a fbgemm-gpu seems to be beside the fbgemm-gpu-cpu of this environment."""
    (tmp_path / "fbgemm_gpu-1.9.0.dist-info").mkdir()
    (tmp_path / "fbgemm_gpu-1.9.0.dist-info" / "METADATA").write_text("Name: fbgemm-gpu\nVersion: 1.9.0\n")
    return f"import sys; sys.path.insert(0, {str(tmp_path)!r})"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("package", ["data", "models"])
def test_an_import_finds_it_out_before_torchrec_does(package, second_build):
    done = run("-c", f"{second_build}; import torchrec_mtl.{package}")
    assert done.returncode == 1
    assert "must not both be installed, since they share a folder" in done.stderr.splitlines()[-1]
    assert "torchrec/" not in done.stderr


def test_the_command_line_says_it_without_a_traceback(second_build):
    mixed = run("-c", f"{second_build}; from torchrec_mtl.__main__ import main; sys.exit(main(['train']))")
    missing = run("-S", "-m", "torchrec_mtl", "train")  # without site-packages
    for done, sentence in ((mixed, "fbgemm-gpu (=1.9.0) and fbgemm-gpu-cpu"), (missing, "torch must be installed: ")):
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(f"error: {sentence}")


def test_a_warning_of_fbgemm_that_is_not_so_is_left_out():
    load = "import fbgemm_gpu; fbgemm_gpu._load_library('fbgemm_gpu_config.so', '1.99.0')"  # as 1.7 loads its files
    alone, ours = run("-c", load), run("-c", f"import torchrec_mtl.data, logging; {load}; logging.warning('another')")
    assert "cannot determine compatibility with PyTorch" in alone.stderr
    assert (ours.returncode, ours.stderr.strip()) == (0, "WARNING:root:another")
