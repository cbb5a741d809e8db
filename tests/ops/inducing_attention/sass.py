"""What a compiled kernel takes, read from its machine code by the `cuobjdump` that comes with Triton."""

import importlib.util
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z0-9_.]+)([^;]*);")


class Kernel(NamedTuple):
    """Registers of a thread, bytes of its stack, instructions, and those within a loop back to any of them."""

    registers: int
    stack: int
    instructions: int
    longest_loop: int


def cuobjdump() -> Path | None:
    """Returns the program; None if Triton is not installed."""
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        return None
    program = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return program if program.is_file() else None


def _dump(option: str, cubin: Path) -> str:
    command = [str(cuobjdump()), option, str(cubin)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def listings(cubin: Path) -> dict[str, list[tuple[int, bool, str, str]]]:
    """Returns each kernel's instructions: address, whether a predicate guards it, name and operands."""
    found = {}
    for part in _dump("-sass", cubin).split("Function : ")[1:]:
        lines = _INSTRUCTION.findall(part)
        found[part.split()[0]] = [(int(at, 16), bool(guard), op, rest) for at, guard, op, rest in lines if op != "NOP"]
    return found


def kernels(cubin: Path) -> dict[str, Kernel]:
    """Returns what each kernel of a file takes, by its mangled name."""
    found = {}
    usage = {
        name: (int(r), int(s))
        for name, r, s in re.findall(r"Function (\S+?):\s+REG:(\d+) STACK:(\d+)", _dump("--dump-resource-usage", cubin))
    }
    for name, code in listings(cubin).items():
        loops = [0]
        for at, _, op, rest in code:
            target = re.search(r"0x([0-9a-f]+)", rest)
            if op == "BRA" and target and int(target[1], 16) < at:
                loops.append(sum(int(target[1], 16) <= place <= at for place, *_ in code))
        found[name] = Kernel(*usage[name], len(code), max(loops))
    return found
