"""Whether PyTorch, TorchRec and fbgemm are installed and go together, which importing a model or a batch finds out.

A mixture would fail later and elsewhere, with a symbol that is missing. Only metadata is read.
"""

import functools
import importlib.util
import logging
from collections.abc import Mapping
from importlib import metadata

from torchrec_mtl.errors import InputError

GO_TOGETHER = {"2.11": "1.6", "2.12": "1.7", "2.13": "1.8", "2.14": "1.9"}  # torch: torchrec, and fbgemm
_INSTALL = 'pip install "torchrec_mtl[cpu]", or "[cuda]"'
_STANDS_IN = "+cpu.shim"  # end of the version of requirements/shim/fbgemm-gpu, which has no code


@functools.cache
def require_stack() -> None:
    """Raises `InputError` unless torch, torchrec and fbgemm are installed, and of releases that go together."""
    names = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu")
    versions = {name: version for name in names if (version := _version(name)) and not version.endswith(_STANDS_IN)}
    if "fbgemm-gpu" not in versions and "fbgemm-gpu-cpu" not in versions and importlib.util.find_spec("fbgemm_gpu"):
        versions["fbgemm-gpu"] = ""  # a build without metadata, of which nothing is known
    check_versions(versions)


def check_versions(versions: Mapping[str, str]) -> None:
    """Raises `InputError` unless packages of these versions go together.

    A PyTorch that this library does not know, such as a later one or a nightly build, is taken with any of the others.

    Args:
        versions: version of each package that is installed, by its name; "" if it has none.

    Example::

        >>> check_versions({"torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.8.0"})
        >>> check_versions({"torch": "2.13.0", "torchrec": "1.8.0", "fbgemm-gpu": "1.9.0"})
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: fbgemm-gpu (=1.9.0) must be 1.8, which goes with torch (=2.13.0): \
pip install --no-deps "fbgemm-gpu==1.8.*"
    """
    for name in ("torch", "torchrec"):
        if name not in versions:
            raise InputError(f"{name} must be installed: {_INSTALL}")
    builds = [name for name in ("fbgemm-gpu", "fbgemm-gpu-cpu") if name in versions]
    if not builds:
        raise InputError(f"fbgemm-gpu-cpu or fbgemm-gpu must be installed: {_INSTALL}")
    if len(builds) > 1:
        both = " and ".join(f"{name} (={versions[name]})" for name in builds)
        remedy = f"pip uninstall {' '.join(builds)}, then {_INSTALL}"
        raise InputError(f"{both} must not both be installed, since they share a folder: {remedy}")
    release = GO_TOGETHER.get(_minor(versions["torch"]))
    for name in ("torchrec", *builds):
        if release and versions[name] and _minor(versions[name]) != release:
            torch = f"torch (={versions['torch']})"
            install = f'pip install --no-deps "{name}=={release}.*"'
            raise InputError(f"{name} (={versions[name]}) must be {release}, which goes with {torch}: {install}")


def _version(name: str) -> str:
    return next((found.version for found in metadata.distributions(name=name)), "")


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _is_of_use(record: logging.LogRecord) -> bool:
    return "_fbgemm_torch_compat_table has no entry" not in record.getMessage()


require_stack()
# fbgemm 1.6 and 1.7 warn, for each file that they load, that they may not go with this PyTorch: they do
logging.getLogger().addFilter(_is_of_use)
