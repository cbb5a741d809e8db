"""Builds the CUDA C++ kernels of TAFE's attention for some sizes, by ``nvcc``, and prints the libraries' paths::

    python -m torchrec_mtl.ops.inducing_attention.cuda.build --dim 18 --heads 2 --fields 20 --types float32 bfloat16

They serve all sizes with as many blocks of eight dimensions and fields, and any number of points, layers and tasks.
With ``--prebuilt``, into the package itself. With ``--emulated``, from the same source for this CPU, for tests.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from torchrec_mtl.errors import InputError
from torchrec_mtl.ops import library
from torchrec_mtl.ops.build import compiled
from torchrec_mtl.ops.inducing_attention.cuda.instances import (
    ARCHITECTURES,
    HEADS,
    MAX_DIM,
    MAX_FIELDS,
    PRECISIONS,
    SOURCE,
    Instance,
    command,
    instance,
    path,
)

_TYPES = {str(dtype).removeprefix("torch."): names for dtype, names in PRECISIONS.items()}
_TYPES["tf32"] = (_TYPES["float32"][1],)
_TYPES["float32"] = _TYPES["float32"][:1]


def build(
    of: Instance, emulated: bool = False, folder: Path | None = None, architectures: Sequence[str] = ARCHITECTURES
) -> Path:
    """Compiles the kernels of an instance, unless they are built already; it takes minutes, or seconds if emulated.

    Args:
        of: what to compile for.
        emulated: whether to compile for this CPU.
        folder: folder of the library; by default where `path` looks for it.
        architectures: compute capabilities to compile for, as ``nvcc`` writes them; others cannot use the library.

    Returns:
        Path of the library.

    Raises:
        InputError: if there is no compiler, or it fails.
    """
    target = path(of, emulated)
    arguments = [*command(emulated), *of.definitions, "-shared", str(SOURCE)]
    for name in () if emulated else architectures:
        code = f"[sm_{name},compute_{name}]" if name == ARCHITECTURES[0] else f"sm_{name}"
        arguments += ["-gencode", f"arch=compute_{name},code={code}"]
    needed = "install GCC or Clang, or name one in the variable CXX" if emulated else "install CUDA's toolkit, 13.0"
    return compiled(arguments, target if folder is None else folder / target.name, needed)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, required=True, choices=range(1, MAX_DIM + 1), metavar="D")
    parser.add_argument("--heads", type=int, default=2, choices=HEADS)
    parser.add_argument("--fields", type=int, required=True, choices=range(1, MAX_FIELDS + 1), metavar="F")
    parser.add_argument("--types", nargs="+", default=["float32", "bfloat16"], choices=list(_TYPES))
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES, metavar="CAPABILITY", help="such as 90a")
    parser.add_argument("--prebuilt", action="store_true", help="into the package itself")
    parser.add_argument("--emulated", action="store_true", help="for this CPU")
    args = parser.parse_args(arguments)
    found = [instance(_TYPES[name][0], args.heads, args.dim, args.fields) for name in args.types]
    where = library.PREBUILT if args.prebuilt else None
    build_one = partial(build, emulated=args.emulated, folder=where, architectures=args.architectures)
    try:
        with ThreadPoolExecutor() as pool:
            for file in pool.map(build_one, found):
                print(file)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
