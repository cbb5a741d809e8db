"""What all warps together issue for a sample in the Triton kernels: compiled for an H200, without one.

A kernel's loops are found in its machine code in the order of the source, and the sizes say how often each runs. Some
with a constant number of turns are unrolled, and one that runs once at most is not there.
"""

import tempfile
from functools import cache
from pathlib import Path

import torch

from benchmarks.attention import BOTH, Size
from benchmarks.roofline.algebra import rows_of_samples
from benchmarks.roofline.control_flow import Instruction, Issued, SourceLoop, issued, matched
from tests.ops.inducing_attention import sass

PROCESSORS = 132


def why_not() -> str | None:
    """Returns why nothing can be counted; None if it can."""
    return "Triton is not installed, or has no cuobjdump" if sass.cuobjdump() is None else None


@cache
def code_of(size: Size, kernel: str) -> list[Instruction]:
    """The machine code of the "forward" or the "backward" kernel, compiled for a size; a minute or two."""
    from triton import compile as compile_kernel

    from tests.ops.inducing_attention import compile_kernels as kernels
    from torchrec_mtl.ops.inducing_attention.triton import launch

    kind = {torch.float32: "fp32", torch.bfloat16: "bf16"}[size.dtype]
    _, samples, _ = schedule(size, kernel)
    source, blocks = kernels.source(kernel, kind, launch.Sizes(*size[1:7]), samples)
    options = launch.options(size.D, blocks, amd=False)
    compiled = compile_kernel(source, target=kernels.TARGETS["sm_90"], options=options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        (code,) = sass.listings(cubin).values()
    return [Instruction(*line) for line in code]


def schedule(size: Size, kernel: str) -> tuple[int, int, int]:
    """Programs, samples in a chunk, and warps in a program."""
    from torchrec_mtl.ops.inducing_attention.triton import launch

    warps = launch.BLOCKS[launch.block_dim(size.D)][kernel == "backward"].warps
    return *launch.schedule(size.B, PROCESSORS, warps), warps


def source_loops(size: Size, rows: int, kernel: str) -> list[SourceLoop]:
    """The kernel's loops, and how often each runs each time it is reached, in a program whose samples keep ``rows``."""
    from torchrec_mtl.ops.inducing_attention.triton import launch

    L, T, m = size.L, size.T, size.m  # noqa: N806
    blocks = launch.BLOCKS[launch.block_dim(size.D)][kernel == "backward"]
    programs, samples, _ = schedule(size, kernel)
    tiles, of_rows, of_fields = -(-rows // blocks.queries), -(-rows // blocks.keys), -(-size.F // blocks.keys)
    one_tile = blocks.keys >= size.K
    keys = [of_fields, *[of_rows] * (L - 1)]  # tiles of them, by layer
    chunks = -(-size.B // samples) / programs
    chunk, members = SourceLoop(1, chunks), size.B / programs / chunks
    if kernel == "forward":
        layer = [(2, members), (3, L, True), (4, tiles), (5, m, True), (6, sum(keys) / L), (4, of_rows, one_tile)]
        adapters = [(2, T, True), (3, L, True), (4, m, True)]
        return [chunk, *_in_chunks(layer, samples), *(SourceLoop(*loop) for loop in adapters)]
    several = [n for n in keys if n > 1] or [0]  # layers that first take another turn, for the softmax
    turns = tiles * len(several) * (several[0] > 0) / L
    cleared = -(-num_folded(size) // 1024)
    adapters = [(1, cleared), tuple(chunk), (2, T, True), (3, L, True), (1, L * T * m, True), (2, chunks)]
    layer = [(3, members), (4, tiles), (4, turns), (5, m, True), (6, sum(several) / len(several))]
    layer += [(4, sum(keys) / L), (5, tiles), (6, m, True)]
    layers = [SourceLoop(1, L, True), chunk._replace(depth=2), *_in_chunks(layer, samples)]
    return [*(SourceLoop(*loop) for loop in adapters), *layers]


def _in_chunks(loops: list[tuple], samples: int) -> list[SourceLoop]:
    """The loop over a chunk's samples and those in it; a chunk of one sample has no such loop."""
    first, *others = (SourceLoop(*loop) for loop in loops)
    return [loop._replace(depth=loop.depth - 1) for loop in others] if samples == 1 else [first, *others]


def num_folded(size: Size) -> int:
    """Numbers in the gradients of the folded weights."""
    D, m, K, L, T = size.D, size.m, size.K, size.L, size.T  # noqa: N806
    return L * (m * K * D + m * D * D + K * D + 2 * D + T * (m * D + m * D * D + 2 * D))


@cache
def _issued(size: Size, kernel: str, source: tuple[SourceLoop, ...]) -> Issued:
    programs, _, warps = schedule(size, kernel)
    code = code_of(size, kernel)
    return Issued().plus(issued(code, matched(code, source)), programs * warps / size.B)


def issued_for_rows(size: Size, rows: int, kernel: str) -> Issued:
    """For a sample that keeps ``rows``, as all others do, in the "forward" or the "backward" kernel."""
    return _issued(size, kernel, tuple(source_loops(size, rows, kernel)))


def issued_for_sample(size: Size, share: float, direction: str) -> Issued:
    """For a sample, the mean over those of a batch."""
    total = Issued()
    for kernel in ("forward", "backward") if direction == BOTH else ("forward",):
        for rows, probability in rows_of_samples(size, share).items():
            total = total.plus(issued_for_rows(size, rows, kernel), probability)
    return total
