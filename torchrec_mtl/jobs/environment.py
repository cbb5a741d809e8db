"""The environment of the jobs' processes, and the machine they run on."""

import importlib.util
import os
import platform
from collections.abc import Mapping
from pathlib import Path

from torchrec_mtl.errors import InputError

# glibc returns large freed blocks to the kernel, and a step on a CPU then spends up to half its time on page faults.
KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**32)}

# PyTorch asks for huge pages for its large tensors: a step reads rows of tables anywhere, and most are on another page.
HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}

NETWORK = ("NCCL_", "TORCH_NCCL_", "GLOO_", "PET_RDZV_CONF")  # prefixes of names


def worker_environment(cores: int, processes: int) -> dict[str, str]:
    """Environment variables for each of ``processes`` that share ``cores``."""
    return {"OMP_NUM_THREADS": str(max(1, cores // processes)), **KEEP_FREED_MEMORY, **HUGE_PAGES}


def agent_environment(max_restarts: int) -> dict[str, str]:
    """Environment variables for torchrun.

    Args:
        max_restarts: number of times that torchrun restarts its workers after one has failed.
    """
    # Each attempt gets its own store: in a shared one, workers would find the addresses of dead workers.
    return {"PET_MAX_RESTARTS": str(max_restarts), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def network_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of NCCL, gloo and the rendezvous, which a job inherits from where it is launched.

    Example::

        >>> network_settings({"NCCL_SOCKET_IFNAME": "eth0,eth1", "HOME": "/root"})
        {'NCCL_SOCKET_IFNAME': 'eth0,eth1'}
    """
    return {name: value for name, value in sorted(environ.items()) if name.startswith(NETWORK)}


def require_extra(extra: str, *packages: str) -> None:
    """Raises `InputError` unless ``packages``, which the extra ``extra`` of this package brings, are installed.

    Example::

        >>> require_extra("report", "no_such_package")
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: no_such_package must be installed: pip install "torchrec_mtl[report]"
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(f'{" and ".join(missing)} must be installed: pip install "torchrec_mtl[{extra}]"')


def processor() -> str:
    """Name of the CPU and its number of cores."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"
