"""The backward of the CUDA C++ kernels: faults put into it are found, and what it takes of a GPU stays in a budget.

That its gradients are right is tested with the forward, in `test_cuda.py`.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.ops.inducing_attention import faults, sass, stacks
from tests.ops.inducing_attention.test_cuda import DEVICE, ON_GPU, PAPER, built, check, emulated_in_poisoned_memory
from torchrec_mtl.ops.inducing_attention.cuda import instances

__all__ = ["emulated_in_poisoned_memory"]  # a fixture
HERE = Path(__file__).parent

# File, what is right in it, and what is wrong instead; whether z masks in the test that must fail.
FAULTS = {
    "lanes of another row are added": ("warp.cuh", "return x + shfl_xor(x, 2);", "return x + shfl_xor(x, 4);", False),
    "a block is not transposed": ("backward_projection.cuh", "P::transposed(dx[i][k])", "dx[i][k]", False),
    "the two blocks of rows are exchanged": (
        "backward_rows.cuh",
        "d_context[0][v] = P::make(d[0], d[1]), d_context[1][v] = P::make(d[2], d[3])",
        "d_context[1][v] = P::make(d[0], d[1]), d_context[0][v] = P::make(d[2], d[3])",
        False,
    ),
    "a field is left out": (
        "backward_keys.cuh",
        "where(key < a.sizes.fields,",
        "where(key < a.sizes.fields - 1,",
        False,
    ),
    "a row too many is read": (
        "backward_rows.cuh",
        "Pred there = row_of(first + i) < sample.rows",
        "Pred there = row_of(first + i) < sample.rows + 1",
        False,
    ),
    "the points at 0 count as one": ("backward.cuh", "F32(log_zeros)", "F32(0.f)", False),
    "the residual's gradient is lost": ("backward_layer.cuh", "d[e] + rest[k][0]", "d[e]", False),
    "a warp's sums are lost": ("backward_memory.cuh", "int warp = first; warp", "int warp = first + step; warp", False),
    "a block's sums are lost": (
        "backward_unfold.cuh",
        "lane / 8 + block < w.blocks",
        "lane / 8 + block < w.blocks - 1",
        False,
    ),
    "log z has no gradient": (
        "backward_rows.cuh",
        "if (!FIRST && a.sizes.masked) add_bias",
        "if (false) add_bias",
        True,
    ),
    "log z is left out": ("backward.cuh", "of_point = log2_(", "of_point = 0 * log2_(", True),
}


def test_the_gradients_are_the_same_from_run_to_run() -> None:
    built(PAPER)
    run, arguments = stacks.on_backend("cuda", PAPER.m), stacks.tensors(PAPER._replace(B=50))
    first, second = (stacks.results(run, arguments, torch.float32, DEVICE) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.verify
def test_a_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if ON_GPU or shutil.which(os.environ.get("CXX") or "c++") is None:
        pytest.skip("the faults are for the emulation")
    name, right, wrong, masked = FAULTS[fault]
    faults.put(name, right, wrong, monkeypatch, tmp_path)
    with pytest.raises(AssertionError):
        check(PAPER._replace(B=50), masked=masked)


# Bytes of stack; instructions of a layer with 16, 24 and 32 rows, without the adapters; bytes of stack of the first.
@pytest.mark.parametrize(
    ("precision", "dim", "stack", "instructions", "first_stack"),
    [
        ("Bf16", 32, 80, (1174, 2262, 2852), 80),
        ("Tf32x3", 18, 1048, (2994, 6400, 7711), 800),
    ],
)
@pytest.mark.verify
def test_it_compiles_within_its_budget(precision, dim, stack, instructions, first_stack, tmp_path) -> None:
    if shutil.which("nvcc") is None or sass.cuobjdump() is None:
        pytest.skip("there is no nvcc, or no cuobjdump")
    blocks, file = -(-dim // 8), tmp_path / "count.cubin"
    definitions = {"PRECISION": precision, "HEADS": 2, "DB": blocks, "FB": blocks, "DIM": dim}
    command = ["nvcc", "-std=c++17", "-O3", "-arch=sm_90a", "-cubin", f"-I{instances.SOURCE.parent}", "-o", file]
    command += [*(f"-D{name}={value}" for name, value in definitions.items()), HERE / "count_backward.cu"]
    subprocess.run(command, check=True, capture_output=True)
    found = {}
    for name, kernel in sass.kernels(file).items():
        if place := re.search(r"layer_ofILi(\d)ELb(\d)", name):
            found[int(place[1]), place[2] == "1"] = kernel
    layers = [found[rows, False] for rows in (2, 3, 4)]
    assert all(kernel.registers <= 255 for kernel in found.values())
    assert max(kernel.stack for kernel in layers) <= stack
    assert found[blocks, True].stack <= first_stack
    executed = [kernel.instructions for kernel in layers]
    executed[2] += layers[2].longest_loop  # which runs twice
    assert all(one <= most for one, most in zip(executed, instructions, strict=True)), executed
