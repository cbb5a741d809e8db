"""What a compiled kernel takes, read from its machine code by the `cuobjdump` that comes with Triton."""

import importlib.util
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)([^;]*);")


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


def kernels(cubin: Path) -> dict[str, Kernel]:
    """Returns what each kernel of a file takes, by its mangled name."""

    def dump(option: str) -> str:
        command = [str(cuobjdump()), option, str(cubin)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    found = {}
    usage = {
        name: (int(r), int(s))
        for name, r, s in re.findall(r"Function (\S+?):\s+REG:(\d+) STACK:(\d+)", dump("--dump-resource-usage"))
    }
    for part in dump("-sass").split("Function : ")[1:]:
        name = part.split()[0]
        code = [(int(at, 16), op, rest) for at, op, rest in _INSTRUCTION.findall(part) if op != "NOP"]
        loops = [0]
        for at, op, rest in code:
            target = re.search(r"0x([0-9a-f]+)", rest)
            if op == "BRA" and target and int(target[1], 16) < at:
                loops.append(sum(int(target[1], 16) <= place <= at for place, *_ in code))
        found[name] = Kernel(*usage[name], len(code), max(loops))
    return found
