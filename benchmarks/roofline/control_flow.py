"""How many instructions a warp issues on its way through a kernel's machine code, given how often each loop runs.

Where the code branches, the way with the fewest instructions counts, except that a loop is not jumped over unless it
is said to run no time: so the count is a lower bound.
"""

import re
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple


class Instruction(NamedTuple):
    """A line of SASS: its address, whether a predicate guards it, its name and its operands."""

    address: int
    guarded: bool
    name: str
    operands: str


class Issued(NamedTuple):
    """Instructions, and those of them that multiply matrices, or multiply and add numbers."""

    instructions: float = 0
    matrix: float = 0
    multiply_add: float = 0

    def plus(self, other: "Issued", times: float = 1) -> "Issued":
        return Issued(*(a + times * b for a, b in zip(self, other, strict=True)))


_NONE, _NEVER = Issued(), Issued(float("inf"))
_KINDS = ("HMMA", "FFMA")


class _Loop(NamedTuple):
    """From the first to the last of its instructions, which jumps back; how often it runs."""

    head: int
    last: int
    times: float


class SourceLoop(NamedTuple):
    """A loop of a source: how many loops it is in, itself too; how often it runs; whether a compiler may unroll it."""

    depth: int
    times: float
    vanishes: bool = False


def loops(code: Sequence[Instruction]) -> list[tuple[int, int]]:
    """Where loops begin and end, as places in ``code``, the outer before the inner ones.

    Code behind the kernel's end, which rare cases jump to and back from, is left out.
    """
    place = {instruction.address: i for i, instruction in enumerate(code)}
    end = next((i for i, x in enumerate(code) if x.name == "EXIT" and not x.guarded), len(code))
    found: dict[int, int] = {}
    for i, instruction in enumerate(code[:end]):
        target = _target(instruction)
        if target is not None and target < instruction.address:
            found[place[target]] = max(i, found.get(place[target], 0))
    return sorted(found.items(), key=lambda loop: (loop[0], -loop[1]))


def matched(code: Sequence[Instruction], source: Sequence[SourceLoop]) -> list[float]:
    """How often each of the code's loops runs, from those of its source, in order.

    Of those that may have been unrolled, as few and as deep ones as possible are left out, so that depths agree.

    Raises:
        ValueError: if they never do.
    """
    found = loops(code)
    depths = [sum(a <= head and last <= b for a, b in found) for head, last in found]
    may = [i for i, loop in enumerate(source) if loop.vanishes]
    ways = [set(out) for n in range(len(may) + 1) for out in combinations(may, n)]
    ways.sort(key=lambda out: (len(out), -sum(source[i].depth for i in out)))
    for out in ways:
        left, inside = [], list[SourceLoop | None]()  # the loops that a place is in; None for one that is left out
        for i, loop in enumerate(source):
            del inside[loop.depth - 1 :]
            inside.append(None if i in out else loop)
            if i not in out:
                left.append((sum(x is not None for x in inside), loop.times))
        if [depth for depth, _ in left] == depths:
            return [times for _, times in left]
    raise ValueError(f"the code's loops, of depths {depths}, are not those of its source: {list(source)}")


def issued(code: Sequence[Instruction], times: Sequence[float]) -> Issued:
    """What a warp issues in a kernel whose loops, in the order of `loops`, run ``times``.

    Raises:
        ValueError: if there are not as many loops as ``times``.

    Example::

        >>> add = Instruction(0, False, "FADD", "R0, R0, R1")
        >>> back, end = Instruction(16, True, "BRA", "0x0"), Instruction(32, False, "EXIT", "")
        >>> issued([add, back, end], [10]).instructions
        21
    """
    found = loops(code)
    if len(found) != len(times):
        raise ValueError(f"{len(times)} loops were expected, and there are {len(found)}: {found}")
    place = {instruction.address: i for i, instruction in enumerate(code)}
    of_loops = [_Loop(head, last, n) for (head, last), n in zip(found, times, strict=True)]
    return _cheapest(code, place, of_loops, 0, len(code) - 1, whole=True)


def _target(instruction: Instruction) -> int | None:
    if not instruction.name.startswith("BRA") or instruction.name.startswith("BRA.DIV"):
        return None
    found = re.search(r"0x([0-9a-f]+)\s*$", instruction.operands)
    return int(found[1], 16) if found else None


def _cheapest(
    code: Sequence[Instruction], place: dict[int, int], inner: Sequence[_Loop], first: int, last: int, whole: bool
) -> Issued:
    """From ``first`` to ``last``, a loop's end, or to the kernel's end."""
    outermost = {loop.head: loop for loop in inner if not any(_within(loop, other) for other in inner)}
    best = [_NEVER] * (last + 2)
    best[last + 1] = _NEVER if whole else _NONE
    for i in range(last, first - 1, -1):
        instruction = code[i]
        if i in outermost:
            loop = outermost[i]
            within = [other for other in inner if _within(other, loop)]
            after = best[loop.last + 1] if code[loop.last].guarded else _NONE  # else it ends where the kernel does
            body = _cheapest(code, place, within, loop.head, loop.last, whole=False)
            best[i] = after.plus(body, loop.times) if loop.times else after
            continue
        own = Issued(1, *(instruction.name.startswith(kind) for kind in _KINDS))
        ways = [] if instruction.name == "EXIT" and not instruction.guarded else [best[i + 1]]
        if instruction.name == "EXIT" and not instruction.guarded and whole:
            ways = [_NONE]
        target = _target(instruction)
        if target is not None and i != last:
            to = place[target]
            if not instruction.guarded:
                ways = []
            if i < to <= last and not any(
                i < loop.head and loop.last < to and loop.times for loop in outermost.values()
            ):
                ways.append(best[to])
        best[i] = own.plus(min(ways, default=_NEVER))
    return best[first]


def _within(loop: _Loop, other: _Loop) -> bool:
    return loop is not other and other.head <= loop.head and loop.last <= other.last
