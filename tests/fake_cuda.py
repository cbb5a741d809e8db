"""A GPU that is the CPU: what torch is asked to do on CUDA happens on the CPU, and is noted.

Kernels of CUDA do not run here, so a model is distributed on the CPU; the code around it runs as it does with a GPU.
"""

import collections
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "cuda":
        return CPU
    return value


class _OnCpu(TorchFunctionMode):
    """Puts the CPU in the place of every CUDA device that an operator is given."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        return func(*tree_map(_on_cpu, args), **tree_map(_on_cpu, kwargs or {}))


def _stream(*args: object, **options: object) -> MagicMock:
    """A stream in which everything has already happened."""
    return MagicMock(device=CUDA)


@contextmanager
def fake_cuda() -> Iterator[collections.Counter]:
    """Yields how often each thing was asked for."""
    asked: collections.Counter = collections.Counter()

    def noting(name: str, result: Any = None) -> Any:
        def called(*args: object, **options: object) -> Any:
            asked[name] += 1
            return result(*args, **options) if callable(result) else result

        return called

    init_process_group, get_backend = dist.init_process_group, dist.get_backend

    def with_gloo(backend: str, **options: Any) -> None:
        asked[backend] += 1
        init_process_group("gloo", **options)

    generator = torch.get_rng_state()
    of_cuda = {
        "is_available": lambda: True,
        "set_device": noting("set_device"),
        "get_device_properties": noting("get_device_properties", SimpleNamespace(total_memory=2**37)),
        "get_rng_state": noting("get_rng_state", generator),
        "set_rng_state": noting("set_rng_state"),
        "synchronize": noting("synchronize"),
        "Stream": noting("Stream", _stream),
        "stream": lambda stream: nullcontext(),
        "current_stream": _stream,
    }
    of_tensor = {
        "pin_memory": noting("pin_memory", lambda tensor: tensor.clone()),
        "record_stream": noting("record_stream"),
    }
    with pytest.MonkeyPatch.context() as patch, _OnCpu():
        patch.setattr(torch.cuda.nccl, "version", lambda: (2, 0, 0))
        for name, function in of_cuda.items():
            patch.setattr(torch.cuda, name, function)
        for name, function in of_tensor.items():
            patch.setattr(torch.Tensor, name, function)
        patch.setattr(dist, "init_process_group", with_gloo)
        patch.setattr(dist, "get_backend", lambda group=None: "nccl" if group is None else get_backend(group))
        yield asked
