"""What a warp issues for a sample in the kernels in CUDA C++: compiled by ``nvcc`` for an H200, without one.

Counted are `count.cu`'s parts of the kernels, for each number of row blocks. Left out is what they take once for all
samples, or to find and order the rows: packing weights, ordering samples, listing rows, adding the sums of blocks.
"""

import hashlib
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from benchmarks.attention import BOTH, Size
from benchmarks.record import ROOT
from benchmarks.roofline.algebra import rows_of_samples
from benchmarks.roofline.control_flow import Instruction, Issued, issued, loops
from tests.ops.inducing_attention import sass
from torchrec_mtl.ops.inducing_attention.cuda import instances

COUNTED = Path(__file__).parent / "count.cu"
FOLDER = ROOT / "build" / "roofline"
BLOCKS = {8: 1, 16: 2, 24: 3, 32: 4, 48: 4, 64: 8}  # of eight rows, as they count: those of 6, which are rare, as 4


def why_not(size: Size) -> str | None:
    """Returns why nothing can be counted; None if it can."""
    if size.D > instances.MAX_DIM or size.F > instances.MAX_FIELDS or size.K > instances.MAX_POINTS:
        return "the kernels do not take these sizes"
    return "there is no nvcc, or no cuobjdump" if shutil.which("nvcc") is None or sass.cuobjdump() is None else None


def compiled(size: Size, row_blocks: int) -> Path:
    """Compiles `count.cu` for a size and ``row_blocks``, or 0 for what has none, unless it has been."""
    of = instances.instance(instances.precision_of(size.dtype), size.m, size.D, size.F)
    sizes = {"DIMS": size.D, "FIELDS": size.F, "POINTS": size.K, "LAYERS": size.L, "TASKS": size.T}
    flags = ["-std=c++17", "-O3", "-arch=sm_90a", *of.definitions, f"-DROW_BLOCKS={row_blocks}"]
    flags += [f"-DNUM_{name}={value}" for name, value in sizes.items()]
    sources = [COUNTED, *sorted(instances.SOURCE.parent.glob("*.cuh"))]
    key = hashlib.sha256("\0".join([*flags, *(file.read_text() for file in sources)]).encode()).hexdigest()[:16]
    target = FOLDER / f"{key}.cubin"
    if not target.is_file():
        FOLDER.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        command = ["nvcc", "-cubin", *flags, f"-I{instances.SOURCE.parent}", str(COUNTED), "-o", str(partial)]
        subprocess.run(command, check=True)
        partial.rename(target)
    return target


@cache
def parts(size: Size, row_blocks: int) -> dict[tuple[str | int, ...], list[Instruction]]:
    """The machine code of each part, by its name and the numbers it is compiled for."""
    found = {}
    for name, code in sass.listings(compiled(size, row_blocks)).items():
        part = re.search(r"\d(forward|adapt|backward|projections)I", name)
        assert part
        found[(part[1], *map(int, re.findall(r"Li(\d+)E", name)))] = [Instruction(*line) for line in code]
    return found


@cache
def issued_for_rows(size: Size, rows: int, direction: str) -> Issued:
    """For a sample that keeps ``rows``."""
    L, T = size.L, size.T  # noqa: N806
    blocks = next(n for most, n in BLOCKS.items() if rows <= most)
    of = parts(size, blocks) | parts(size, 0)
    pairs = -(-min(rows, 8 * blocks) // 16)

    def part(name: str, *numbers: int, times: int) -> Issued:
        code = of[(name, *numbers)]
        return issued(code, [times] * len(loops(code)))

    # a warp has 16 samples' adapters of a task
    total = part("forward", blocks, times=L - 1).plus(part("adapt", L, times=L), T / 16)
    if direction != BOTH:
        return total
    for l in range(1, L + 1):  # noqa: E741
        total = total.plus(part("backward", blocks, blocks, L if l == L else 1, times=pairs))
    # The first layer takes its rows in pairs of blocks, of which the last may be alone.
    fields, (in_pairs, alone) = -(-size.F // 8), divmod(-(-rows // 8), 2)
    total = total.plus(part("backward", fields, 8, 0, times=in_pairs))
    if alone:
        total = total.plus(part("backward", fields, 7, 0, times=3)).plus(part("backward", fields, 8, 0, times=3), -1)
    for l in range(L):  # noqa: E741
        total = total.plus(part("projections", L - 1 if l == L - 1 else 1, times=0), T / 16)
    return total


def issued_for_sample(size: Size, share: float, direction: str) -> Issued:
    """For a sample, the mean over those of a batch."""
    total = Issued()
    for rows, probability in rows_of_samples(size, share).items():
        total = total.plus(issued_for_rows(size, rows, direction), probability)
    return total
