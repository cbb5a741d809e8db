"""First figures of TAFE's stack from a GPU, within a limit of time. Not yet run on a GPU::

    python -m benchmarks.gpu.first --seconds 100
    python -m benchmarks.gpu.first --tiny           # tries the program on a CPU, with interpreted kernels

Needs torch and Triton alone. Each row goes at once to ``rows.jsonl`` in ``$OUT``, or in the present folder. What is
wrong or fails gets a row with its `error`, and the rest goes on.
"""

import argparse
import json
import os
import sys
import time
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import torch

from benchmarks import record
from benchmarks.attention import SIZES, TINY, measure_cuda
from benchmarks.gpu.device import ensure_environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=100, help="no row is measured after these")
    parser.add_argument("--tiny", action="store_true", help="a tiny size on the CPU")
    arguments = parser.parse_args()
    ensure_environment(TRITON_INTERPRET="1" if arguments.tiny else "0")
    deadline = time.monotonic() + arguments.seconds
    sizes, device = (TINY, "cpu") if arguments.tiny else (SIZES, "cuda")

    def add(row: record.Row) -> None:
        print(json.dumps(row, default=str), file=file, flush=True)
        if time.monotonic() > deadline:
            sys.exit(f"stopped after {arguments.seconds:g} s")

    rows = SimpleNamespace(add=add)
    with (Path(os.environ.get("OUT") or ".") / "rows.jsonl").open("a", encoding="utf-8") as file:
        add({"device": torch.cuda.get_device_name() if device == "cuda" else device, "versions": record.versions()})
        for active, (name, size) in product((0.25, 1.0), sizes.items()):
            try:
                measure_cuda(rows, {name: size}, (active,), device, 1 if arguments.tiny else 10, compiles=False)
            except Exception as error:
                add({"size": name, "active": active, "error": f"{type(error).__name__}: {error}"[:300]})


if __name__ == "__main__":
    main()
