"""Compiles the Triton kernels for an H100 or H200 on a machine without a GPU.::

    python -m benchmarks.gpu.precompile             # minutes: all that `benchmarks.gpu` launches, to build/gpu-kernels
    python -m benchmarks.gpu.precompile FOLDER

`benchmarks.gpu` uses ``build/gpu-kernels`` if it is there; it must come from the same version of Triton and the same
kernels. For other programs ``TRITON_CACHE_DIR=FOLDER`` does, at the same absolute path.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import torch

from benchmarks.attention import SIZES, Size, draw, stack, step
from benchmarks.gpu.environment import KERNELS, ensure_environment
from benchmarks.gpu.stack import DIRECTIONS
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
        for direction in DIRECTIONS:
            yield f"{name}, {direction}", step(stack("triton", size.m), tensors, direction)
    for name, shape in shapes.items():
        for precision, (dtype, products, _) in gpu_tests.PRECISIONS.items():
            torch.set_float32_matmul_precision(products)
            run, _ = gpu_tests.functions(shape)
            yield f"test {name}, {precision}", partial(stacks.results, run, stacks.tensors(shape), dtype, "cpu")


def training_launches() -> Iterator[tuple[str, Callable[[], object]]]:
    """What `figure_8` launches; needs TorchRec."""
    from benchmarks.gpu import figure_8

    torch.set_float32_matmul_precision("highest")
    for batch_size in figure_8.BATCH_SIZES:
        arch = figure_8.subject("tafe", batch_size, num_rows=2).ours.get_submodule("model.over_arch")
        fields = torch.zeros(batch_size, *arch.shape)
        yield f"training, {batch_size}", lambda arch=arch, fields=fields: arch(fields).sum().backward()


def precompile(folder: Path, calls: Iterable[tuple[str, Callable[[], object]]]) -> None:
    """Makes the calls; Triton puts the kernels into the folder."""
    in_triton = {"TORCHREC_MTL_INDUCING_ATTENTION": "triton"}
    ensure_environment(TRITON_CACHE_DIR=str(folder.absolute()), TRITON_INTERPRET="0", **in_triton)
    launch_without_a_gpu()
    for name, run in calls:
        began = time.monotonic()
        run()
        print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)
    print(f"{len(list(folder.rglob('*.cubin')))} kernels in {folder}")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit("error: give the folder, and nothing else")
    of_all = chain(launches(SIZES, gpu_tests.SHAPES), training_launches())
    precompile(Path(sys.argv[1]) if len(sys.argv) == 2 else KERNELS, of_all)
