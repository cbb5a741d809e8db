"""Compiles the Triton kernels for an H100 or H200 on a machine without a GPU. The result is not yet run on a GPU::

    python -m benchmarks.gpu.precompile FOLDER    # minutes; all that tests/gpu and benchmarks.attention launch

With the folder at the same absolute path on a GPU machine, the same Triton and the same kernels,
``TRITON_CACHE_DIR=FOLDER`` spares compiling them again.
"""

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch

from benchmarks.attention import BOTH, SIZES, Size, draw, stack, step
from benchmarks.gpu.device import ensure_environment
from tests.gpu import test_inducing_attention_gpu as gpu_tests
from tests.ops.inducing_attention import stacks


def launch_without_a_gpu() -> None:
    """Makes a launch compile for sm_90 and return, with tensors on the CPU; what it computes means nothing."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import JITFunction, driver

    from torchrec_mtl.ops.inducing_attention import triton as backend
    from torchrec_mtl.ops.inducing_attention.triton import launch

    run, target = JITFunction.run, GPUTarget("cuda", 90, 32)
    JITFunction.run = lambda self, *args, warmup, **kwargs: run(self, *args, warmup=True, **kwargs)
    current = {"device": lambda: 0, "stream": lambda device: 0, "target": lambda: target}
    driver.set_active(SimpleNamespace(**{f"get_current_{name}": of for name, of in current.items()}))
    launch._schedule = lambda batch, device, warps: launch.schedule(batch, 132, warps)  # processors
    backend.why_not = lambda inputs, points: None


def launches(sizes: dict[str, Size], shapes: dict[str, stacks.Shape]) -> Iterator[tuple[str, Callable[[], object]]]:
    """Calls that launch what the benchmarks do at these sizes, and the tests at these shapes; with their names."""
    for name, size in sizes.items():
        tensors = draw(size, 0.25, "cpu")
        for direction in ("forward", BOTH):
            yield f"{name}, {direction}", step(stack("triton", size.m), tensors, direction)
    for name, shape in shapes.items():
        for precision, (dtype, products, _) in gpu_tests.PRECISIONS.items():
            torch.set_float32_matmul_precision(products)
            run, _ = gpu_tests.functions(shape)
            yield f"test {name}, {precision}", partial(stacks.results, run, stacks.tensors(shape), dtype, "cpu")


def precompile(folder: Path, sizes: dict[str, Size], shapes: dict[str, stacks.Shape]) -> None:
    """Launches all of it; Triton puts the kernels into the folder."""
    ensure_environment(TRITON_CACHE_DIR=str(folder.absolute()), TRITON_INTERPRET="0")
    launch_without_a_gpu()
    for name, run in launches(sizes, shapes):
        began = time.monotonic()
        run()
        print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)
    print(f"{len(list(folder.rglob('*.cubin')))} kernels in {folder}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("error: give the folder, and nothing else")
    precompile(Path(sys.argv[1]), SIZES, gpu_tests.SHAPES)
