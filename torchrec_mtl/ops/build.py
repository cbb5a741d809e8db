"""Builds the library of C++ kernels and prints its path: ``python -m torchrec_mtl.ops.build``.

With ``--prebuilt``, those that a wheel brings, for every kind of processor, into the package itself.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from torchrec_mtl.errors import InputError
from torchrec_mtl.ops import library


def build(march: str = "", folder: Path | None = None) -> Path:
    """Compiles the kernels, unless they are built already, with ``$CXX`` or ``c++``: GCC or Clang, 12 or later.

    It takes half a minute. Several processes may build at once: each compiles to a file of its own and publishes it
    by one rename.

    Args:
        march: processors to build for, as the compiler names them; by default this machine's.
        folder: folder of the library; by default where `library.path` looks for it.

    Returns:
        Path of the library. A process that has already looked for the library and not found it will not load it.

    Raises:
        InputError: if there is no compiler, or it fails.
    """
    target = library.path(march) if folder is None else folder / library.name(march)
    compiler = os.environ.get("CXX") or "c++"
    sources = [str(file) for file in library.SOURCES if file.suffix == ".cpp"]
    pytorch = Path(torch.__file__).parent
    found = [f"-I{pytorch / 'include'}", f"-L{pytorch / 'lib'}"]
    command = [compiler, *library.flags(march), *found, *sources, "-ltorch_cpu"]
    return compiled(command, target, "install GCC or Clang, or name one in the variable CXX")


def compiled(command: list[str], target: Path, needed: str) -> Path:
    """Runs a compiler to make ``target``, unless it is there already; publishes it whole, by one rename.

    Raises:
        InputError: if there is no such compiler, with what is ``needed``, or it fails.
    """
    if target.is_file():
        return target
    if shutil.which(command[0]) is None:
        raise InputError(f"there is no compiler `{command[0]}`: {needed}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.stem}-") as partial:
        unpublished = Path(partial) / target.name
        command = [*command, "-o", str(unpublished)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise InputError(f"`{' '.join(command)}` failed:\n{result.stderr}")
        unpublished.replace(target)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = ", ".join(library.PROCESSORS)
    parser.add_argument("--prebuilt", nargs="*", metavar="PROCESSOR", help=f"build for a wheel ({kinds})")
    args = parser.parse_args()
    try:
        if args.prebuilt is None:
            print(build())
            return
        shutil.rmtree(library.PREBUILT, ignore_errors=True)
        for march in args.prebuilt or library.PROCESSORS:
            print(build(march, library.PREBUILT))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
