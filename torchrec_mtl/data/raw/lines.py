"""Reads the lines of large text files in blocks, on several threads, and tells good lines from bad ones.

One regular expression decides whether a whole line is good. So the parser of good lines never meets a value that it
could misread.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
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
Progress = Callable[[str, int, float], None]  # stage, number of rows so far, share of the stage that is done


@dataclass(frozen=True)
class Block:
    """Whole lines of a file.

    Args:
        first_line: number of the first line, counted from 1.
        data: content of the lines, separated by "\\n", with none at the end.
        ended: whether the last line ended in "\\n".
    """

    first_line: int
    data: bytes
    ended: bool = True

    @cached_property
    def last_line(self) -> int:
        """Number of the last line."""
        return self.first_line + self.data.count(b"\n")

    @property
    def text(self) -> str:
        """The lines decoded as latin-1, in which every byte is a character."""
        return self.data.decode("latin-1")


def read_blocks(stream: RawStream, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """Yields the file in blocks of about ``block_bytes``.

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
    """Maps items on threads and yields the results in order, with at most one item waiting for a thread.

    Example::

        >>> list(map_in_order(str.upper, ["a", "b", "c"], num_threads=2))
        ['A', 'B', 'C']
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for item in items:
                pending.append(pool.submit(copy_context().run, function, item))  # so that `redacted` holds there too
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
    """Yields the results of ``parse`` for the blocks of the file, in order, and reports the progress."""

    def parse_block(block: Block) -> tuple[Block, Result]:
        return block, parse(block)

    with file.open() as stream:
        for block, result in map_in_order(parse_block, read_blocks(stream), num_threads):
            progress(stage, block.last_line, stream.share_read)
            yield result


@dataclass(frozen=True)
class BadLine:
    """A line that breaks the format, its number counted from 1, and the reason."""

    number: int
    text: str
    reason: str


def good_lines(block: Block, pattern: str) -> tuple[bytes, Array]:
    """Returns the lines that match ``pattern``, which is ASCII, and their numbers. A line without its end is bad."""
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
    """Returns all lines of a block whose numbers are not in ``good``, with the reasons why they are bad."""
    numbers = np.arange(block.first_line, block.last_line + 1)
    if len(good) == len(numbers):
        return []
    return explain_lines(block, np.setdiff1d(numbers, good).tolist(), reason)


def explain_lines(block: Block, numbers: Iterable[int], reason: Callable[[str], str]) -> list[BadLine]:
    """Returns the lines with these numbers, with the reasons why they are bad."""
    texts = block.text.split("\n")
    without_end = None if block.ended else block.last_line
    return [
        BadLine(number, text, NOT_ENDED if number == without_end else reason(text))
        for number, text in ((number, texts[number - block.first_line]) for number in numbers)
    ]
