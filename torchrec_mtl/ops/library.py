"""The library of all C++ kernels: where it lies, loading it, and what it can take.

The sources are plain C++ without PyTorch's headers, so one library serves every version of PyTorch. The file's name
contains a hash of the sources and of the compiler's flags, so different kinds of machines can share a folder.
"""

import ctypes
import functools
import hashlib
import os
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from torchrec_mtl.errors import InputError
from torchrec_mtl.ops.backends import takes_forward_mode

_ROOT = Path(__file__).parent
SOURCES = sorted(_ROOT.rglob("*.[ch]pp"))
_ARCHITECTURES = {"AVX2": "x86-64-v3", "AVX512": "x86-64-v4"}  # PyTorch's name of the CPU, and the compiler's
_TYPES = {torch.float32: "float", torch.float64: "double"}


def flags() -> list[str]:
    """Returns the compiler's flags for this machine."""
    architecture = _ARCHITECTURES.get(torch.backends.cpu.get_cpu_capability())
    instructions = [f"-march={architecture}"] if architecture else []
    return ["-std=c++17", "-O3", *instructions, "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC"]


def path() -> Path:
    """Returns where the library lies once it is built: in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    sources = [text for file in SOURCES for text in (file.relative_to(_ROOT).as_posix(), file.read_text("utf-8"))]
    key = hashlib.sha256("\0".join([*sources, platform.machine(), *flags()]).encode())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "torchrec_mtl" / f"kernels-{key.hexdigest()[:16]}.so"


@functools.cache
def load() -> ctypes.CDLL | None:
    """Returns the library; None if it had not been built when the process first asked for it."""
    file = path()
    return ctypes.CDLL(str(file)) if file.is_file() else None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_built() -> bool:
    return load() is not None


def why_not(*tensors: Tensor) -> str | None:
    """Returns why the kernels cannot take these tensors; None if they can."""
    if any(x.device.type != "cpu" for x in tensors):
        return "it runs on the CPU only"
    if tensors[0].dtype not in _TYPES or any(x.dtype != tensors[0].dtype for x in tensors):
        return "it takes float32 or float64, not a mixture"
    if takes_forward_mode():
        return "forward-mode derivatives are those of the backend 'reference'"
    return None if _is_built() else "it is not built: run `python -m torchrec_mtl.ops.build`"


def require(kernel: str, *tensors: Tensor) -> None:
    """Raises an `InputError` that names ``kernel`` if it cannot take these tensors."""
    reason = why_not(*tensors)
    if reason is not None:
        raise InputError(f"the {kernel} kernel cannot be used: {reason}")


def function(name: str, dtype: torch.dtype) -> Callable[..., None]:
    """Returns the library's function for tensors of this type; call `require` first."""
    library = load()
    assert library is not None
    return getattr(library, f"{name}_{_TYPES[dtype]}")
