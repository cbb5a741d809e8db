"""The library of all C++ kernels: where it lies, loading it, and what it can take.

It defines operators by PyTorch's stable ABI, so one library serves every version of PyTorch, and programs without
Python. The file's name contains a hash of the sources and of the compiler's flags, so different kinds of machines can
share a folder. A wheel brings one for each kind of processor.
"""

import functools
import hashlib
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import Tensor

from torchrec_mtl.errors import InputError
from torchrec_mtl.ops.backends import takes_forward_mode

_ROOT = Path(__file__).parent
PREBUILT = _ROOT / "prebuilt"  # of a wheel
SOURCES = sorted(_ROOT.rglob("*.[ch]pp"))
ARCHITECTURES = {"AVX2": "x86-64-v3", "AVX512": "x86-64-v4"}  # PyTorch's name of the CPU, and the compiler's
PROCESSORS = ("x86-64-v2", *ARCHITECTURES.values())  # of which a wheel has the library
_STABLE_ABI = "0x020a000000000000"  # of PyTorch 2.10
_NOT_BUILT = "it is not built: run `python -m torchrec_mtl.ops.build`"
_CARRIED = ContextVar("carried", default=False)
_TYPES = (torch.float32, torch.float64)


def this_processor() -> str:
    """Returns which of `PROCESSORS` this machine has; "" if it has another."""
    if platform.machine() != "x86_64":
        return ""
    return ARCHITECTURES.get(torch.backends.cpu.get_cpu_capability(), PROCESSORS[0])


def flags(march: str = "") -> list[str]:
    """Returns the compiler's flags for the processors ``march``; by default for this machine's."""
    march = march or this_processor()
    instructions = [f"-march={march}"] if march else []
    optimisation = ["-O3", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp"]
    return ["-std=c++20", *optimisation, *instructions, "-shared", "-fPIC", f"-DTORCH_TARGET_VERSION={_STABLE_ABI}"]


def name(march: str = "") -> str:
    """Returns the name of the library's file."""
    sources = [text for file in SOURCES for text in (file.relative_to(_ROOT).as_posix(), file.read_text("utf-8"))]
    key = hashlib.sha256("\0".join([*sources, platform.machine(), *flags(march)]).encode())
    return f"kernels-{key.hexdigest()[:16]}.so"


def path(march: str = "") -> Path:
    """Returns where the library lies once it is built: in the wheel, or in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    file = name(march)  # reads all sources
    if (PREBUILT / file).is_file():
        return PREBUILT / file
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchrec_mtl" / file


@functools.cache
def load() -> bool:
    """Defines the operators of the library; returns whether it had been built when the process first asked for it."""
    file = path()
    if file.is_file():
        torch.ops.load_library(file)
    return file.is_file()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_loaded() -> bool:
    return load()


@contextmanager
def carried() -> Iterator[None]:
    """Within it, "auto" may take the kernels in programs that are exported: the library will be at hand where they run.

    Raises:
        InputError: if the library is not built.
    """
    if not load():
        raise InputError(f"the library of C++ kernels cannot go with an exported program: {_NOT_BUILT}")
    reset = _CARRIED.set(True)
    try:
        yield
    finally:
        _CARRIED.reset(reset)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_carried() -> bool:
    """Returns whether the kernels go with programs that are exported."""
    return _CARRIED.get()


def kernels_types(*tensors: Tensor) -> tuple[list[torch.dtype], torch.dtype]:
    """Returns the types in which the kernels compute with tensors, and the type that their result must have.

    Tensors of 16 bits become float32, under autocast too: converting them takes less time than the kernels save over
    PyTorch's products in bfloat16. The result has the type that autocast, or the first tensor, asks for.

    Example::

        >>> kernels_types(torch.ones(2, dtype=torch.bfloat16))
        ([torch.float32], torch.bfloat16)
    """
    autocast = torch.is_autocast_enabled("cpu") and tensors[0].device.type == "cpu"
    types = [x.dtype for x in tensors]
    halves = (torch.bfloat16, torch.float16)
    if types[0] == torch.float64 or not (autocast or (types[0] in halves and all(t == types[0] for t in types))):
        return types, types[0]
    return [torch.float32 if t in halves else t for t in types], torch.get_autocast_dtype("cpu") if autocast else types[
        0
    ]


def in_kernels_precision(*tensors: Tensor) -> tuple[list[Tensor], torch.dtype]:
    """Returns tensors in their `kernels_types`, and the type that the result must have.

    Example::

        >>> tensors, dtype = in_kernels_precision(torch.ones(2, dtype=torch.bfloat16))
        >>> tensors[0].dtype, dtype
        (torch.float32, torch.bfloat16)
    """
    types, of_result = kernels_types(*tensors)
    return [x.to(dtype) for x, dtype in zip(tensors, types, strict=True)], of_result


def why_not(*tensors: Tensor, types: Sequence[torch.dtype] | None = None) -> str | None:
    """Returns why the kernels cannot take these tensors, converted to ``types`` if they are given; None if they can."""
    types = [x.dtype for x in tensors] if types is None else types
    if not all(x.is_cpu for x in tensors):
        return "it runs on the CPU only"
    if types[0] not in _TYPES or any(dtype != types[0] for dtype in types):
        return "it takes float32 or float64, not a mixture"
    if takes_forward_mode():
        return "forward-mode derivatives are those of the backend 'reference'"
    return None if _is_loaded() else _NOT_BUILT


def require(kernel: str, *tensors: Tensor) -> None:
    """Raises an `InputError` that names ``kernel`` if it cannot take these tensors."""
    reason = why_not(*tensors)
    if reason is not None:
        raise InputError(f"the {kernel} kernel cannot be used: {reason}")
