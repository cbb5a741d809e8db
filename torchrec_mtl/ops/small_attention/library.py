"""The kernels' library, of attention and of the inducing-point stack: where it lies, and loading it.

It is plain C++ without PyTorch's headers, so one library serves every version of PyTorch. Its name is made of its
source and of the instructions it is compiled for, so machines of several kinds may share the folder.
"""

import ctypes
import functools
import hashlib
import os
import platform
from pathlib import Path

import torch

SOURCES = sorted(Path(__file__).parent.glob("*.[ch]pp"))
_ARCHITECTURES = {"AVX2": "x86-64-v3", "AVX512": "x86-64-v4"}  # what PyTorch says of the CPU, what compilers call it


def flags() -> list[str]:
    """The compiler's, for this machine."""
    architecture = _ARCHITECTURES.get(torch.backends.cpu.get_cpu_capability())
    instructions = [f"-march={architecture}"] if architecture else []
    return ["-std=c++17", "-O3", *instructions, "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC"]


def path() -> Path:
    """Where the library is, or will be once it is built: in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    texts = [file.read_text(encoding="utf-8") for file in SOURCES]
    key = hashlib.sha256("\0".join([*texts, platform.machine(), *flags()]).encode())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "torchrec_mtl" / f"small_attention-{key.hexdigest()[:16]}.so"


@functools.cache
def load() -> ctypes.CDLL | None:
    """The library; None if it had not been built when the process first asked."""
    file = path()
    return ctypes.CDLL(str(file)) if file.is_file() else None
