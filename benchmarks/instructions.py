"""How many machine instructions a fixed training step takes: ``python -m benchmarks.instructions``, some minutes.

Valgrind's callgrind counts them, one thread, on a processor that it makes up: they hardly depend on the machine. A step
is `benchmarks.counts`'s, with all that the loop does for one; two of them are counted, and must agree within 1 %.
``--hold`` counts again and ends with status 1 where a step takes 5 % more or less than ``instructions.csv`` of
``benchmarks/results`` has. Without valgrind (a package of most Linux distributions) it ends with status 2.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks import counts, record
from torchrec_mtl.training.distributed import process_group

SYSTEMS = ("shared_bottom", "tafe", "bpcm")
AGREEMENT = 0.01


def count(folder: str) -> list[int]:
    """Of two steps of each system, in a new process: valgrind writes a file for each toggle into ``folder``."""
    tool = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--collect-atstart=no"]
    tool.append(f"--callgrind-out-file={folder}/counts")
    command = [*tool, sys.executable, "-W", "ignore", "-m", "benchmarks.instructions", "--inside"]
    environment = {**os.environ, **counts.ATTENTION["PyTorch"], "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=record.ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: under valgrind: {done.stderr[-2000:]}")
    files = sorted(Path(folder).glob("counts.*"), key=lambda file: int(file.suffix[1:]))
    totals = [int(file.read_text().rpartition("totals:")[2]) for file in files]
    return totals[1::2]  # every other file is of what lies between two steps


def step() -> None:
    """Under valgrind."""
    with process_group(counts.CPU):
        for system in SYSTEMS:
            with counts.begun(system) as case:
                _instrument("on")
                case.take_step()
                for _ in range(2):
                    torch._C._valgrind_toggle_and_dump_stats()
                    case.take_step()
                    torch._C._valgrind_toggle_and_dump_stats()
                _instrument("off")


def _instrument(switch: str) -> None:
    """Only where it is needed: everything is fifty times as slow with it."""
    subprocess.run(["callgrind_control", "-i", switch, str(os.getpid())], check=True, capture_output=True)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hold", action="store_true", help="what was accepted")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)


def main() -> None:
    arguments = record.parse("instructions", __doc__, options)
    if arguments.inside:
        step()
        return
    if shutil.which("valgrind") is None:
        print("error: valgrind is not installed", file=sys.stderr)
        raise SystemExit(2)
    accepted = counts.read_accepted("instructions") if arguments.hold else []
    circumstances = record.begin()
    counts.SIZE.split()  # prepared here, as under valgrind all takes long
    with tempfile.TemporaryDirectory() as folder:
        found = count(folder)
    rows = []
    for system, first, second in zip(SYSTEMS, found[::2], found[1::2], strict=True):
        if abs(first / second - 1) > AGREEMENT:
            sys.exit(f"error: {system}: two steps must take as many instructions, not {first:,} and {second:,}")
        rows.append({"system": system, "attention": "PyTorch", **record.spread([first, second], "instructions", 0)})
        print(f"{system}: {rows[-1]['median']:,.0f} instructions a step", flush=True)
    if not arguments.hold:
        record.write(arguments.results, rows, circumstances)
        return
    if moved := counts.differences(rows, accepted, equal=(), within=("median",)):
        sys.exit("\n".join(["error: a fixed step takes another number of instructions", *moved]))


if __name__ == "__main__":
    main()
