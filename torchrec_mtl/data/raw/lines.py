"""Blocks of raw lines: which are as they must be, and what is told of the others.

One regular expression for the whole line decides. So whatever reads the good lines never meets a value that it might
read otherwise than meant.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.raw.blocks import Block

NOT_ENDED = "must end in a line feed; the file may be cut short"
CARRIAGE_RETURN = "must end in a line feed alone, not in a carriage return too"
LINE_FEED = 10


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
    return tell_lines(block, np.setdiff1d(numbers, good).tolist(), reason)


def tell_lines(block: Block, numbers: Iterable[int], reason: Callable[[str], str]) -> list[BadLine]:
    """Lines with these numbers, and why each is bad."""
    texts = block.text.split("\n")
    not_ended = None if block.ended else block.last_line
    return [
        BadLine(number, text, NOT_ENDED if number == not_ended else reason(text))
        for number, text in ((number, texts[number - block.first_line]) for number in numbers)
    ]
