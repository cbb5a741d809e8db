"""The forward of the CUDA C++ kernels: the emulated warp, faults that must be found, and what it takes of a GPU.

That its output is right is tested in `test_cuda.py`. What the emulation cannot show: the order in which the device adds
the terms of a product, its approximations of 2^x, 1 / x and 1 / sqrt(x), and threads that run at different speeds.
"""

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.ops.inducing_attention import faults, sass
from tests.ops.inducing_attention.test_cuda import ON_GPU, PAPER, check, emulated_in_poisoned_memory
from torchrec_mtl.ops.inducing_attention.cuda import instances

__all__ = ["emulated_in_poisoned_memory"]  # a fixture
HERE, LANE = Path(__file__).parent, np.arange(32)
needs_compiler = pytest.mark.skipif(shutil.which(os.environ.get("CXX") or "c++") is None, reason="there is no compiler")

# Where lanes hold a product's operands, as strides: of lane % 4 and lane / 4, then of the bits of a value's place, into
# the 16 x K matrix A by columns and into the 8 x K matrix B, its transpose, likewise. PTX ISA, "Matrix Fragments for
# mma.m16n8k16 with floating point type", and those for mma.m16n8k8; there written as rows and columns.
LAYOUTS = {
    ("bf16", 16): (0, (32, 1), (16, 8, 128), (16, 1), (8, 64)),
    ("fp16", 16): (1, (32, 1), (16, 8, 128), (16, 1), (8, 64)),
    ("bf16", 8): (2, (32, 1), (16, 8), (16, 1), (8,)),
    ("fp16", 8): (3, (32, 1), (16, 8), (16, 1), (8,)),
    ("tf32", 8): (4, (16, 1), (8, 64), (8, 1), (32,)),
}
OF_RESULT = ((32, 1), (16, 8))


@pytest.fixture(scope="module")
def warp(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("warp") / "warp.so"
    compiler = [os.environ.get("CXX") or "c++", "-std=c++17", "-O1", "-Wno-psabi", "-shared", "-fPIC"]
    subprocess.run([*compiler, f"-I{instances.SOURCE.parent}", HERE / "fragments.cpp", "-o", library], check=True)
    return ctypes.CDLL(str(library))


def pointer(x: np.ndarray) -> ctypes.c_void_p:
    return x.ctypes.data_as(ctypes.c_void_p)


def places(threads: tuple[int, int], values: tuple[int, ...], value: int) -> np.ndarray:
    return LANE % 4 * threads[0] + LANE // 4 * threads[1] + sum(s for i, s in enumerate(values) if value >> i & 1)


def registers(
    matrix: np.ndarray, kind: str, threads: tuple[int, int], values: tuple[int, ...], count: int
) -> np.ndarray:
    found = np.stack([matrix[places(threads, values, i)] for i in range(1 << len(values))]).astype(np.float32)
    if kind == "tf32":
        bits = found.view(np.uint32)
    else:
        half = found.astype(np.float16).view(np.uint16) if kind == "fp16" else found.view(np.uint32) >> 16
        bits = half[0::2].astype(np.uint32) | half[1::2].astype(np.uint32) << 16
    return np.concatenate([bits, np.zeros((count - len(bits), 32), np.uint32)])


@needs_compiler
@pytest.mark.parametrize(("kind", "k"), LAYOUTS)
def test_lanes_hold_what_ptx_says(kind: str, k: int, warp: ctypes.CDLL) -> None:
    number, *layouts = LAYOUTS[kind, k]
    generator = np.random.default_rng(0)
    a, b, c = (generator.integers(-8, 9, n).astype(np.float32) for n in (16 * k, 8 * k, 128))  # exact in every format
    operands = [
        registers(matrix, kind, threads, values, count)
        for matrix, threads, values, count in ((a, *layouts[:2], 4), (b, *layouts[2:], 2))
    ]
    d = np.stack([c[places(*OF_RESULT, i)] for i in range(4)])
    warp.multiply(number, *map(pointer, operands), pointer(d))
    expected = (a.reshape(k, 16).T @ b.reshape(k, 8) + c.reshape(8, 16).T).T.ravel()
    for i in range(4):
        assert (d[i] == expected[places(*OF_RESULT, i)]).all()


@needs_compiler
def test_a_block_is_transposed(warp: ctypes.CDLL) -> None:
    matrix = np.arange(64, dtype=np.uint16).reshape(8, 8)  # two neighbours of a row a lane
    out = np.zeros(32, np.uint32)
    warp.transpose(pointer(matrix.view(np.uint32).ravel().copy()), pointer(out))
    assert (out.view(np.uint16).reshape(8, 8) == matrix.T).all()


@needs_compiler
def test_the_place_of_each_set_bit(warp: ctypes.CDLL) -> None:
    generator = np.random.default_rng(0)
    for share in (0.1, 0.5, 1.0):
        bits = generator.random(64) < share
        low, high = (int(np.packbits(part, bitorder="little").view("<u4")[0]) for part in (bits[:32], bits[32:]))
        for first in (0, 32):
            out = np.zeros(32, np.int32)
            warp.nth(low, ctypes.c_uint32(high), pointer(np.arange(first, first + 32, dtype=np.int32)), pointer(out))
            expected = np.flatnonzero(bits)[first : first + 32]
            assert (out[: len(expected)] == expected).all()


# File, what is right in it, and what is wrong instead; whether z masks in the test that must fail.
FAULTS = {
    "two registers are exchanged": (
        "precisions.cuh",
        "u.x, l.x, u.y, l.y, r.x, r.y",
        "u.x, u.y, l.x, l.y, r.x, r.y",
        False,
    ),
    "a lane reads another's": ("precisions.cuh", "from = t * 8 + g / 2", "from = t * 8 + g / 2 + 1", False),
    "the mean has a field too many": ("forward.cuh", "(8 * b + e) < s.fields", "(8 * b + e) < s.fields + 1", False),
    "a row is left out": (
        "rows.cuh",
        "where(key < s.rows, F32(log_zeros)",
        "where(key < s.rows - 1, F32(log_zeros)",
        False,
    ),
    "the points at 0 count as one": ("rows.cuh", "F32(log_zeros), F32(NEVER)", "F32(0.f), F32(NEVER)", False),
    "log z is another row's": ("rows.cuh", "8 * t + 4 * e)", "8 * t + 4)", True),
    "log z is left out": ("rows.cuh", "of_point = log2_(", "of_point = 0 * log2_(", True),
    "LayerNorm takes what is beyond D": ("rows.cuh", "left > 2 * b + e", "left >= 2 * b + e", False),
    "the small half is dropped": (
        "precisions.cuh",
        "mma_tf32_k8(d, u.small_x, l.small_x, u.small_y, l.small_y, r.x, r.y);",
        "",
        False,
    ),
    "the former task is read": (
        "adapters.cuh",
        "const int matrix = l * s.tasks + task;",
        "const int matrix = l * s.tasks + task / 2;",
        False,
    ),
    "the first residual is lost": (
        "forward.cuh",
        "} else if (kind == QUERY) {",
        "} else if (kind == QUERY && !FIRST) {",
        False,
    ),
}


@needs_compiler
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.verify
def test_a_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if ON_GPU:
        pytest.skip("the faults are for the emulation")
    *replacement, masked = FAULTS[fault]
    faults.put(*replacement, monkeypatch, tmp_path)
    with pytest.raises(AssertionError):
        check(PAPER._replace(B=18), masked=masked)


# Registers; bytes of stack and instructions of a layer with the adapters' attention, with 16, 24 and 32 rows.
@pytest.mark.parametrize(
    ("precision", "dim", "registers", "stack", "instructions"),
    [("Bf16", 32, 128, (0, 16, 40), (460, 780, 1080)), ("Tf32x3", 18, 168, (0, 80, 400), (1170, 1930, 2670))],
)
@pytest.mark.verify
def test_it_compiles_within_its_budget(precision, dim, registers, stack, instructions, tmp_path) -> None:
    if shutil.which("nvcc") is None or sass.cuobjdump() is None:
        pytest.skip("there is no nvcc, or no cuobjdump")
    blocks, file = -(-dim // 8), tmp_path / "count.cubin"
    definitions = {"PRECISION": precision, "HEADS": 2, "DB": blocks, "FB": blocks, "DIM": dim}
    command = ["nvcc", "-std=c++17", "-O3", "-arch=sm_90a", "-cubin", f"-I{instances.SOURCE.parent}", "-o", file]
    command += [*(f"-D{name}={value}" for name, value in definitions.items()), HERE / "count_forward.cu"]
    subprocess.run(command, check=True, capture_output=True)
    found = {int(re.search(r"rows_ofILi(\d)", name)[1]): kernel for name, kernel in sass.kernels(file).items()}
    kernels = [found[blocks] for blocks in (2, 3, 4)]
    assert all(kernel.registers <= registers for kernel in kernels)
    assert all(kernel.stack <= most for kernel, most in zip(kernels, stack, strict=True)), kernels
    assert all(kernel.longest_loop <= most for kernel, most in zip(kernels, instructions, strict=True)), kernels
