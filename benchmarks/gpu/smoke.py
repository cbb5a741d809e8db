"""The first figures: what the device is and reaches, and whether the kernels are right at the paper's size."""

import os
from collections.abc import Callable

import torch

from benchmarks.gpu import stack
from benchmarks.gpu.device import reached
from benchmarks.gpu.environment import KERNELS, adopt
from benchmarks.record import Row


def measure(add: Callable[[Row], None], pretend: bool) -> None:
    """A row of the device, one for each kind of number, and those of the definition and the kernels."""
    device, ahead = "cpu" if pretend else "cuda", adopt(KERNELS) if KERNELS.is_dir() else 0
    about: Row = {"what": "device", "kernels_ahead": ahead, "cores": os.cpu_count()}
    if not pretend:
        found = torch.cuda.get_device_properties(0)
        about |= {"capability": f"{found.major}.{found.minor}", "multiprocessors": found.multi_processor_count}
        about |= {"memory_gib": round(found.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    add(about)
    for dtype in (torch.float32, torch.bfloat16):
        bytes_a_second, flop_a_second = reached(dtype, device)
        figures = {"copy_gb_per_second": bytes_a_second / 1e9, "tflop_per_second": flop_a_second / 1e12}
        add({"what": "device", "dtype": dtype, **{name: round(value, 3) for name, value in figures.items()}})
    stack.measure(add, pretend, "paper", (0.25,), paths=("eager", "triton", "cuda"), modes=("plain",))
