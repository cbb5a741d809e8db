"""Lines of large text files: read in blocks by several threads, matched, and explained where they are bad.

One regular expression decides whether a whole line is good. So whatever reads the good lines never meets a value that
it might read differently from what was meant.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import polars as pl
import pyarrow as pa

from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.raw.files import RawFile, RawStream
from torchrec_mtl.errors import InputError

BLOCK_BYTES = 2**23
MAX_LINE_BYTES = 2**24
NOT_ENDED = "must end in a line feed; the file may be cut short"
CARRIAGE_RETURN = "must end in a line feed alone, not in a carriage return too"
LINE_FEED = 10
Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[str, int, float], None]  # stage, rows read so far, share of the file read


@dataclass(frozen=True)
class Block:
    """Whole lines of a file.

    Args:
        first_line: the number of the first one, counted from 1.
        data: the lines, "\\n" between them and none at the end.
        ended: whether the last line had its "\\n".
    """

    first_line: int
    data: bytes
    ended: bool = True

    @cached_property
    def last_line(self) -> int:
        return self.first_line + self.data.count(b"\n")

    @property
    def text(self) -> str:
        """In latin-1: every byte is one character, whatever it is."""
        return self.data.decode("latin-1")


def read_blocks(stream: RawStream, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """The file in blocks of about ``block_bytes``.

    Raises:
        InputError: if the file is empty, damaged, or has a line longer than 16 MiB.
    """
    line, rest = 1, b""
    while piece := stream.read(block_bytes):
        end = piece.rfind(b"\n")
        if end < 0:
            rest += piece
            if len(rest) > MAX_LINE_BYTES:
                raise InputError(f"{stream.file}, line {line}: must be shorter than {MAX_LINE_BYTES} bytes")
            continue
        block = Block(line, rest + piece[:end])
        yield block
        line, rest = block.last_line + 1, piece[end + 1 :]
    if rest:
        yield Block(line, rest, ended=False)
    elif line == 1:
        raise InputError(f"{stream.file}: must not be empty")


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], num_threads: int) -> Iterator[Result]:
    """``map`` on threads, with at most one item waiting besides those that are worked on.

    Example::

        >>> list(map_in_order(str.upper, ["a", "b", "c"], num_threads=2))
        ['A', 'B', 'C']
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > num_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def read_lines(
    file: RawFile, parse: Callable[[Block], Result], stage: str, progress: Progress, num_threads: int
) -> Iterator[Result]:
    """What ``parse`` makes of the file's blocks, in order; tells ``progress`` how far it is."""

    def parse_and_tell(block: Block) -> tuple[Block, Result]:
        return block, parse(block)

    with file.open() as stream:
        for block, result in map_in_order(parse_and_tell, read_blocks(stream), num_threads):
            progress(stage, block.last_line, stream.share_read)
            yield result


@dataclass(frozen=True)
class BadLine:
    number: int
    text: str
    reason: str


def good_lines(block: Block, pattern: str) -> tuple[bytes, Array]:
    """The block's lines that match a pattern of ASCII characters, and their numbers; one not ended is none of them."""
    data = (block.data if block.data.isascii() else block.text.encode()) + b"\n"  # Polars reads UTF-8
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == LINE_FEED) + 1
    offsets = np.concatenate([[0], ends])
    lines = pl.Series(pa.LargeStringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(data)))
    matches = lines.str.contains(f"^{pattern}\n$")
    if not block.ended:
        matches[len(matches) - 1] = False
    numbers = np.arange(block.first_line, block.first_line + len(ends))
    if matches.all():
        return data, numbers
    return "".join(lines.filter(matches)).encode(), numbers[matches.to_numpy()]


def bad_lines(block: Block, good: Array, reason: Callable[[str], str]) -> list[BadLine]:
    """All lines of a block but those with the numbers ``good``."""
    numbers = np.arange(block.first_line, block.last_line + 1)
    if len(good) == len(numbers):
        return []
    return explain_lines(block, np.setdiff1d(numbers, good).tolist(), reason)


def explain_lines(block: Block, numbers: Iterable[int], reason: Callable[[str], str]) -> list[BadLine]:
    """Lines with these numbers, and why each is bad."""
    texts = block.text.split("\n")
    not_ended = None if block.ended else block.last_line
    return [
        BadLine(number, text, NOT_ENDED if number == not_ended else reason(text))
        for number, text in ((number, texts[number - block.first_line]) for number in numbers)
    ]
