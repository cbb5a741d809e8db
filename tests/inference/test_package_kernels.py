"""A package brings the attention kernels with it: it runs where they are not built, and where there is no Python."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import fbgemm_gpu
import numpy as np
import pytest
import torch

from tests.support import TASKS, batch, build
from torchrec_mtl.data import MultiTaskBatch
from torchrec_mtl.errors import InputError
from torchrec_mtl.inference.package import export_package, load_package
from torchrec_mtl.inference.package.graph import InferenceGraph, example
from torchrec_mtl.inference.package.load import Arguments
from torchrec_mtl.ops import library

SOURCE = Path(__file__).parents[2] / "examples" / "score_package.cpp"
TORCH, FBGEMM = (Path(module.__file__).parent for module in (torch, fbgemm_gpu))
KEYS = ["f0", "f1", "f2", "f3"]
needs_kernels = pytest.mark.skipif(not library.load(), reason="the C++ kernels are not built")
pytestmark = [pytest.mark.slow, needs_kernels]


def made(name):
    torch.manual_seed(0)
    return build(name, embedding_dim=4).eval()


def as_batch(rows):
    return MultiTaskBatch(rows.dense_features, rows.sparse_features, rows.labels)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels") / "package"
    with torch.no_grad():
        return export_package(made("tafe"), TASKS, folder, as_batch(batch(9)), unknown_rows={"f1": 0})


@pytest.mark.parametrize("name", ["tafe", "bpcm"])
def test_an_exported_graph_calls_the_kernels_only_if_they_travel(name):
    graph = InferenceGraph(build(name, embedding_dim=4).eval(), TASKS).eval()
    arguments = example(graph, 37)

    def operators():
        program = torch.export.export(graph, arguments, strict=False)
        return [str(node.target) for node in program.graph.nodes if str(node.target).startswith("torchrec_mtl.")]

    assert operators() == []
    with library.carried():
        assert operators() != []


def test_kernels_that_are_not_built_cannot_travel(monkeypatch):
    monkeypatch.setattr(library, "load", lambda: False)
    with pytest.raises(InputError, match="cannot go with an exported program: it is not built"), library.carried():
        pass


PROGRAM = """
import sys
from torchrec_mtl.inference.package import load_package
from torchrec_mtl.ops import library
for folder in sys.argv[1:]:
    load_package(folder)  # compares the scores of its golden batch
print(library.load())
"""


@pytest.mark.verify
def test_it_runs_where_they_are_not_built(package, tmp_path):
    with torch.no_grad():  # a process may hold several packages
        other = export_package(made("bpcm"), TASKS, tmp_path / "other", as_batch(batch(9)))
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(package), str(other)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The example in C++, compiled as its first lines say."""
    if shutil.which("c++") is None:
        pytest.skip("there is no compiler `c++`")
    command = re.search(r"//     (c\+\+ .*)\n//         (.*)  \(one line\)", SOURCE.read_text())
    assert command is not None
    output = tmp_path_factory.mktemp("program")
    line = " ".join(command.groups()).replace("examples/", f"{SOURCE.parent}/").replace("$T", str(TORCH))
    subprocess.run(line.split(), cwd=output, check=True, capture_output=True, text=True)
    return output / "score_package"


def score(program, package, lines):
    command = [program, package, FBGEMM / "fbgemm_gpu_tbe_inference.so"]
    return subprocess.run(command, input="\n".join(lines) + "\n", capture_output=True, text=True, check=False)


@pytest.mark.verify
def test_the_program_in_cpp_scores_as_the_package(package, program):
    num_rows, rng = 2500, np.random.default_rng(0)  # three batches
    loaded = load_package(package)
    sizes, num_dense = loaded.manifest.num_embeddings, loaded.manifest.num_dense
    dense = rng.normal(size=(num_rows, num_dense)).astype(np.float32)
    lengths = rng.integers(0, 4, (len(KEYS), num_rows))
    ids = [[rng.integers(0, size, n).tolist() for n in of_key] for size, of_key in zip(sizes, lengths, strict=True)]
    ids[1][7], lengths[1, 7] = [10**12], 1  # scored as row 0
    cells = [[*map(str, dense[n].tolist()), *(",".join(map(str, of[n])) for of in ids)] for n in range(num_rows)]
    header = [*(f"dense_{i}" for i in range(num_dense)), *KEYS]
    done = score(program, package, ["\t".join(row) for row in (header, *cells)])
    assert done.returncode == 0, done.stderr
    names, *scores = (line.split("\t") for line in done.stdout.splitlines())
    assert names == list(TASKS)
    values = torch.tensor([x for of_key in ids for row in of_key for x in row])
    expected = loaded.run(Arguments(torch.from_numpy(dense), values, torch.from_numpy(lengths)))
    np.testing.assert_allclose(np.array(scores, np.float32), expected.numpy(), atol=1e-6)


def test_the_program_in_cpp_refuses_what_it_cannot_read(package, program, tmp_path):
    num_dense = load_package(package).manifest.num_dense
    header = "\t".join([*(f"dense_{i}" for i in range(num_dense)), *KEYS])
    zeros = "\t".join(["0"] * num_dense)
    for lines, message in [
        (["f0"], f"line 1: must name {num_dense} dense columns and then the package's keys"),
        ([header, f"{zeros}\t1\t2"], f"line 2: must have {num_dense + 4} cells, not {num_dense + 2}"),
        ([header, f"{zeros}\t1\t2\t3,x\t4"], "line 2: a cell is no number"),
        ([header, f"{zeros}\t1000000\t2\t3\t4"], "lines to 2: cannot be scored; is an id outside its table?"),
    ]:
        done = score(program, package, lines)
        assert done.returncode == 2
        assert f"error: {message}" in done.stderr
    assert "manifest.json: there is no such file" in score(program, tmp_path, [header]).stderr


def test_the_hashes_can_be_compared_without_this_library(package):
    page = (SOURCE.parents[1] / "docs" / "a_trained_run.md").read_text()
    command = re.search(r"python3 -c 'import json.*sha256sum -c.*", page)
    assert command is not None
    done = subprocess.run(command[0], shell=True, cwd=package, capture_output=True, text=True, check=False)
    assert (done.returncode, "kernels.so: OK" in done.stdout) == (0, True), done
    (package / "manifest.json").rename(package / "kept.json")
    try:
        text = (package / "kept.json").read_text()
        digest = re.search(r'"kernels.so": "(.)', text)[1]
        (package / "manifest.json").write_text(
            text.replace(f'"kernels.so": "{digest}', f'"kernels.so": "{(int(digest, 16) + 1) % 16:x}')
        )
        done = subprocess.run(command[0], shell=True, cwd=package, capture_output=True, text=True, check=False)
        assert done.returncode == 1
    finally:
        (package / "kept.json").replace(package / "manifest.json")
