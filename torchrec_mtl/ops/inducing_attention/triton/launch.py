"""Launches the Triton kernels: sizes, tiles and memory of the forward and the backward kernel."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from torchrec_mtl.errors import InputError
from torchrec_mtl.ops.inducing_attention.triton.backward import backward_kernel
from torchrec_mtl.ops.inducing_attention.triton.forward import forward_kernel

EPS = 1e-5  # as in torch.nn.LayerNorm


class Blocks(NamedTuple):
    """Tiles of a kernel: rows of queries and of keys in a tile, and warps in a program."""

    queries: int
    keys: int
    warps: int


# Forward and backward, by the embedding dimension's power of two. Chosen by the registers that the compiler counts, not
# by timings.
BLOCKS = {
    16: (Blocks(16, 32, 1), Blocks(16, 32, 4)),
    32: (Blocks(16, 32, 1), Blocks(16, 32, 4)),
    64: (Blocks(32, 64, 4), Blocks(32, 64, 8)),
    128: (Blocks(32, 64, 8), Blocks(16, 32, 8)),
}


class Sizes(NamedTuple):
    """The sizes that the kernels are compiled for; `tiles` explains the letters."""

    F: int
    K: int
    D: int
    HEADS: int
    LAYERS: int
    TASKS: int


def sizes_of(tensors: list[Tensor]) -> Sizes:
    layers, heads, points, dim = tensors[2].shape
    return Sizes(tensors[0].shape[1], points, dim, heads, layers, tensors[7].shape[1])


def _check(tensors: list[Tensor]) -> None:
    """Checks the shapes by which the kernels read memory."""
    f, k, d, m, n, t = sizes_of(tensors)
    b = tensors[0].shape[0]
    layers = [(b, f, d), (b, k), (n, m, k, d), (n, m, d, d), (n, k, d), (n, d), (n, d)]
    adapters = [(n, t, m, d), (n, t, m, d, d), (n, t, d), (n, t, d)]
    shapes = [tuple(x.shape) for x in tensors]
    if shapes != layers + adapters:
        raise InputError(f"the stack's tensors have the shapes {shapes}, not {layers + adapters}")


def block_dim(dim: int) -> int:
    """Returns the number of columns of a tile."""
    return max(16, triton.next_power_of_2(dim))


def _precision() -> str:
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def schedule(batch: int, processors: int, warps: int) -> tuple[int, int]:
    """Returns the number of programs, and of samples in a chunk.

    There are as many programs as can run at once: 8 warps a processor, given the registers that the kernels use. Chunks
    are as large as they can be without giving the busiest program over an eighth more samples than it must have.
    """
    programs = processors * max(1, 8 // warps)

    def busiest(samples: int) -> int:
        return samples * triton.cdiv(triton.cdiv(batch, samples), programs)

    samples = next(n for n in (16, 8, 4, 2, 1) if 8 * busiest(n) <= 9 * busiest(1))
    return min(programs, triton.cdiv(batch, samples)), samples


def _schedule(batch: int, device: torch.device, warps: int) -> tuple[int, int]:
    if device.type != "cuda":  # the interpreter: several chunks a program, and a last chunk that is not full
        return min(2, triton.cdiv(batch, 2)), 2
    return schedule(batch, torch.cuda.get_device_properties(device).multi_processor_count, warps)


def like_output(tensors: list[Tensor]) -> Tensor:
    """Allocates ``T^L [B, T, D]``, or without adapters ``Y [B, K, D]``."""
    sizes = sizes_of(tensors)
    return tensors[0].new_empty(tensors[0].shape[0], sizes.TASKS or sizes.K, sizes.D)


def to_keep(tensors: list[Tensor], slots: int) -> list[Tensor]:
    """Allocates what the forward kernel writes besides its output, by slot; rows not kept stay unwritten."""
    _, points, dim, heads, layers, tasks = sizes_of(tensors)
    new = tensors[0].new_empty

    def floats(*shape: int) -> Tensor:
        return new(shape, dtype=torch.float32)

    return [
        new((slots, points), dtype=torch.int32),  # order
        new((slots,), dtype=torch.int32),  # active
        new(slots, layers, points, dim),  # X_hat
        floats(slots, layers, points),  # 1 / deviation
        floats(slots, layers, heads, points),  # log-sums
        new(slots, layers, tasks, heads, dim),  # C
        floats(slots, layers, tasks, heads),  # the log-sums of C
        floats(slots, layers, tasks, dim),  # the adapters' X_hat
        floats(slots, layers, tasks),  # the adapters' 1 / deviation
    ]


def constants(
    sizes: Sizes, residuals: tuple[str, str], blocks: Blocks, samples: int, precision: str
) -> dict[str, object]:
    """Returns the constants that both kernels are compiled for."""
    tiles = {"BLOCK_Q": blocks.queries, "BLOCK_K": blocks.keys, "BLOCK_D": block_dim(sizes.D)}
    others = {"FIRST_RESIDUAL": residuals[0], "RESIDUAL": residuals[1], "SAMPLES": samples, "PRECISION": precision}
    return {**sizes._asdict(), **tiles, **others}


def options(dim: int, blocks: Blocks, amd: bool = torch.version.hip is not None) -> dict[str, int]:
    """Returns how both kernels are compiled.

    Without ``maxnreg``, ptxas gives float32 kernels of more than 32 dimensions 32 registers, and kilobytes of stack.
    """
    return {"num_warps": blocks.warps, "num_stages": 1, **({"maxnreg": 255} if dim > 32 and not amd else {})}


def forward_constants(sizes: Sizes, dense: bool, keep: bool) -> dict[str, object]:
    return {"DENSE": dense, "KEEP": keep, "EPS": EPS, "BLOCK_POINTS": triton.next_power_of_2(sizes.K)}


def backward_constants(sizes: Sizes, blocks: Blocks, gated: bool, partial: int) -> dict[str, object]:
    """dM of all heads stays in registers if that takes at most 64 a thread; otherwise it is summed in memory."""
    heads = triton.next_power_of_2(sizes.HEADS)
    fits = heads * block_dim(sizes.D) ** 2 <= 64 * 32 * blocks.warps
    return {"GATED": gated, "PARTIAL": partial, "VALUES_IN_REGISTERS": fits, "BLOCK_HEADS": heads}


def launch_forward(tensors: list[Tensor], residuals: tuple[str, str], dense: bool, keep: bool) -> list[Tensor]:
    """Returns the output and, with ``keep``, what the backward needs. One launch; the tensors must be contiguous."""
    _check(tensors)
    batch, sizes = tensors[0].shape[0], sizes_of(tensors)
    output = like_output(tensors)
    if not batch:
        return [output, *to_keep(tensors, 0)]
    blocks = BLOCKS[block_dim(sizes.D)][0]
    programs, samples = _schedule(batch, output.device, blocks.warps)
    kept = to_keep(tensors, batch if keep else programs * samples)
    with torch.cuda.device_of(output):
        forward_kernel[(programs,)](
            *tensors, output, *kept, batch,
            **constants(sizes, residuals, blocks, samples, _precision()), **forward_constants(sizes, dense, keep),
            **options(sizes.D, blocks),
        )  # fmt: skip
    return [output, *(kept if keep else to_keep(tensors, 0))]


def launch_backward(
    upstream: Tensor, tensors: list[Tensor], kept: list[Tensor], residuals: tuple[str, str], gated: bool
) -> list[Tensor]:
    """Returns dH, dz, and all weights' gradients in one float32 tensor. One launch, and a sum over the programs."""
    inputs, selection, *weights = tensors
    batch, sizes = inputs.shape[0], sizes_of(tensors)
    d_inputs, d_selection = torch.empty_like(inputs), torch.empty_like(selection)
    if not batch:
        return [d_inputs, d_selection, inputs.new_zeros(sum(x.numel() for x in weights), dtype=torch.float32)]
    block_d = block_dim(sizes.D)
    blocks = BLOCKS[block_d][1]
    programs, samples = _schedule(batch, inputs.device, blocks.warps)
    counts = [x.numel() for x in weights]
    partial = inputs.new_empty((programs, sum(counts)), dtype=torch.float32)

    def floats(*shape: int) -> Tensor:
        return inputs.new_empty(shape, dtype=torch.float32)

    working = (
        inputs.new_empty(batch, sizes.LAYERS, sizes.TASKS, sizes.D),  # dF
        torch.empty_like(kept[5]),  # dC
        floats(batch, sizes.K, sizes.D),  # dY
        floats(programs, sizes.K, sizes.D),  # g
        floats(programs, sizes.HEADS, sizes.K),  # slopes
    )
    with torch.cuda.device_of(inputs):
        backward_kernel[(programs,)](
            upstream, *tensors[:10], *kept, d_inputs, d_selection, *partial.split(counts, dim=1), *working, batch,
            **constants(sizes, residuals, blocks, samples, _precision()),
            **backward_constants(sizes, blocks, gated, sum(counts)), **options(sizes.D, blocks),
        )  # fmt: skip
    return [d_inputs, d_selection, partial.sum(0)]
