"""Large text files in blocks of whole lines, worked on by several threads and handed back in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from torchrec_mtl.data.raw.files import RawFile, RawStream
from torchrec_mtl.errors import InputError

BLOCK_BYTES = 2**23
MAX_LINE_BYTES = 2**24
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
