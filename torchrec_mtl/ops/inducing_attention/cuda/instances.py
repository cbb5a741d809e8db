"""The libraries of CUDA C++ kernels: one for each instance, where it lies, and loading it.

An instance is what a kernel is compiled for: a precision, a number of heads, and the sizes' multiples of eight. Its
library has a plain C interface, so it serves every version of PyTorch. The file's name contains a hash of the sources
and of the compiler's flags. ``python -m torchrec_mtl.ops.inducing_attention.cuda.build`` builds it.
"""

import ctypes
import functools
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import torch

from torchrec_mtl.ops import library

HEADS = (1, 2, 4)
MAX_DIM, MAX_POINTS, MAX_FIELDS = 32, 64, 64
CAPABILITY = (8, 0)  # the oldest that the kernels run on
PRECISIONS = {
    torch.float32: ("Tf32x3", "Tf32"),  # in full, and as `torch.set_float32_matmul_precision` may allow
    torch.bfloat16: ("Bf16",),
    torch.float16: ("Fp16",),
}
_FOLDER = Path(__file__).parent
SOURCE = _FOLDER / "kernels.cu"
ARCHITECTURES = ("80", "90a")  # the first also as PTX, which a GPU of another compiles at the first call
_NVCC = ["nvcc", "-std=c++17", "-O3", "-cudart", "static", "-Xcompiler", "-fPIC"]
_EMULATED = ["-std=c++17", "-O1", "-fno-math-errno", "-Wno-psabi", "-fPIC", "-x", "c++"]
_BLOCK = 8


class Instance(NamedTuple):
    """What a library is compiled for."""

    precision: str
    heads: int
    dim_blocks: int  # of eight dimensions
    field_blocks: int  # of eight fields

    @property
    def definitions(self) -> list[str]:
        """The compiler's arguments; `arguments.cuh` explains them."""
        names = ("PRECISION", "HEADS", "DB", "FB")
        return [f"-D{name}={value}" for name, value in zip(names, self, strict=True)]


_LOADED: dict[tuple[Instance, bool], ctypes.CDLL] = {}


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def precision_of(dtype: torch.dtype) -> str:
    """Returns the name of the precision for tensors of a type, as PyTorch's settings want it."""
    full, *others = PRECISIONS[dtype]
    return others[0] if others and torch.get_float32_matmul_precision() != "highest" else full


def instance(precision: str, heads: int, dim: int, fields: int) -> Instance:
    """Returns the instance that takes these sizes.

    Example::

        >>> instance("Tf32x3", heads=2, dim=18, fields=20)
        Instance(precision='Tf32x3', heads=2, dim_blocks=3, field_blocks=3)
    """
    return Instance(precision, heads, max(2, -(-dim // _BLOCK)), -(-fields // _BLOCK))


def command(emulated: bool) -> list[str]:
    """Returns the compiler and its flags, without an instance's, for a GPU or for the emulation on this CPU."""
    if not emulated:
        return _NVCC
    march = library.this_processor()
    return [os.environ.get("CXX") or "c++", *_EMULATED, *([f"-march={march}"] if march else [])]


@functools.cache
def _sources() -> bytes:
    files = [SOURCE, *sorted(_FOLDER.glob("*.cuh"))]
    return b"\0".join(part for file in files for part in (file.name.encode(), file.read_bytes()))


def path(of: Instance, emulated: bool = False) -> Path:
    """Returns where an instance's library lies once it is built: in the wheel, or in ``~/.cache`` as `library.path`."""
    key = hashlib.sha256("\0".join(command(emulated)[1:]).encode() + _sources()).hexdigest()[:16]
    kind = "emulated" if emulated else "cuda"
    name = f"inducing-{kind}-{'-'.join(map(str, of))}-{key}.so".lower()
    if (library.PREBUILT / name).is_file():
        return library.PREBUILT / name
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchrec_mtl" / name


def find(of: Instance, emulated: bool) -> ctypes.CDLL | None:
    """Returns an instance's library, loaded once; None if it is not built."""
    if (of, emulated) not in _LOADED:
        file = path(of, emulated)
        if not file.is_file():
            return None
        kernels = ctypes.CDLL(str(file))
        kernels.describe.restype = ctypes.c_char_p
        kernels.workspace_size.restype = ctypes.c_long
        for name in ("run_forward", "run_backward"):
            getattr(kernels, name).argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        _LOADED[of, emulated] = kernels
    return _LOADED[of, emulated]
