"""Builds the C++ kernels and says where they are: ``python -m torchrec_mtl.ops.small_attention.build``."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from torchrec_mtl.errors import InputError
from torchrec_mtl.ops.small_attention import library


def build() -> Path:
    """Compiles the kernels, unless that is done, with the compiler ``$CXX`` (``c++``): GCC or Clang, 12 or later.

    It takes half a minute. Processes may build at once: each compiles aside and publishes by one rename.

    Returns:
        The library's path. A process that has looked for it in vain before does not see it.

    Raises:
        InputError: if there is no compiler, or it fails.
    """
    target = library.path()
    if target.is_file():
        return target
    compiler = os.environ.get("CXX") or "c++"
    if shutil.which(compiler) is None:
        raise InputError(f"there is no compiler `{compiler}`: install GCC or Clang, or name one in the variable CXX")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.stem}-") as folder:
        aside = Path(folder) / target.name
        sources = [str(file) for file in library.SOURCES if file.suffix == ".cpp"]
        command = [compiler, *library.flags(), *sources, "-o", str(aside)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise InputError(f"`{' '.join(command)}` failed:\n{result.stderr}")
        aside.replace(target)
    return target


if __name__ == "__main__":
    try:
        print(build())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
