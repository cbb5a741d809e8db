"""Blocks of raw lines to columns.

Lines that are not as they must be are set aside first, by one regular expression for the whole line. So Polars' CSV
reader never meets a value that it might read otherwise than meant.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from torchrec_mtl.data.raw.bad_rows import BadRows
from torchrec_mtl.data.raw.blocks import Block, Progress, read_lines
from torchrec_mtl.data.raw.files import RawFile
from torchrec_mtl.data.taobao.layout import Format
from torchrec_mtl.errors import InputError

NOT_ENDED = "must end in a line feed; the file may be cut short"


@dataclass(frozen=True)
class BadLine:
    number: int
    text: str
    reason: str


def read_rows(
    file: RawFile, layout: Format, bad_rows: BadRows, progress: Progress, num_threads: int
) -> Iterator[pl.DataFrame]:
    """The good rows of a file, block by block: its columns, null where missing, and ``line``, counted from 1.

    Raises:
        InputError: if the header is another, there is no row, or a row is bad, as ``bad_rows`` has it.
    """

    def parse(block: Block) -> tuple[pl.DataFrame, list[BadLine]]:
        if block.first_line > 1:
            return parse_block(block, layout)
        header, line_feed, rest = block.data.partition(b"\n")
        if header.decode("latin-1") != layout.first_line:
            told = f"must be {layout.first_line!r}, not {header.decode('latin-1')[:200]!r}"
            raise InputError(f"{file}, line 1: the header {told}")
        return parse_block(Block(2, rest, block.ended), layout) if line_feed else (_columns(b"", layout), [])

    num_rows = 0
    for rows, bad in read_lines(file, parse, file.name, progress, num_threads):
        for line in bad:
            bad_rows.add(file, line.number, line.text, line.reason)
        num_rows += rows.height
        if rows.height:
            yield rows
    if not num_rows:
        raise InputError(f"{file}: must have at least one good row after the header")


def parse_block(block: Block, layout: Format) -> tuple[pl.DataFrame, list[BadLine]]:
    """The good rows of a block, and its bad lines."""
    text = pl.Series("text", [block.data.decode("latin-1")]).str.split("\n").explode()
    matches = text.str.contains(layout.pattern)
    if not block.ended:
        matches[len(matches) - 1] = False
    numbers = pl.int_range(block.first_line, block.first_line + len(text), dtype=pl.Int64, eager=True)
    if matches.all():
        return _columns(block.data, layout).with_columns(line=numbers), []
    good = "\n".join(text.filter(matches)).encode("latin-1")
    last = None if block.ended else block.last_line
    bad = [
        BadLine(number, line, NOT_ENDED if number == last else layout.reason(line))
        for number, line in zip(numbers.filter(~matches), text.filter(~matches), strict=True)
    ]
    return _columns(good, layout).with_columns(line=numbers.filter(matches)), bad


def _columns(data: bytes, layout: Format) -> pl.DataFrame:
    """Lines that match to columns."""
    schema = layout.schema
    if not data:
        return pl.DataFrame(schema=schema)
    return pl.read_csv(data, has_header=False, schema=schema, quote_char=None, null_values=["", "NULL"])
