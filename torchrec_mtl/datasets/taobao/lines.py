"""Parses blocks of raw lines into columns."""

from collections.abc import Iterator

import polars as pl

from torchrec_mtl.data.raw.bad_rows import BadRows
from torchrec_mtl.data.raw.files import RawFile
from torchrec_mtl.data.raw.lines import BadLine, Block, Progress, bad_lines, good_lines, read_lines
from torchrec_mtl.datasets.taobao.layout import Format
from torchrec_mtl.errors import InputError, shown


def read_rows(
    file: RawFile, layout: Format, bad_rows: BadRows, progress: Progress, num_threads: int
) -> Iterator[pl.DataFrame]:
    """Yields the good rows of a file, block by block: its columns, null where missing, and ``line``, counted from 1.

    Raises:
        InputError: if the header is wrong, there is no good row, or on a bad row, as `BadRows.add` raises it.
    """

    def parse(block: Block) -> tuple[pl.DataFrame, list[BadLine]]:
        if block.first_line > 1:
            return parse_block(block, layout)
        header, line_feed, rest = block.data.partition(b"\n")
        if header.decode("latin-1") != layout.first_line:
            rule = f"must be {layout.first_line!r}, not {shown(repr(header.decode('latin-1')[:200]))}"
            raise InputError(f"{file}, line 1: the header {rule}")
        return (
            parse_block(Block(2, rest, block.ended), layout) if line_feed else (pl.DataFrame(schema=layout.schema), [])
        )

    num_rows = 0
    for rows, bad in read_lines(file, parse, file.name, progress, num_threads):
        bad_rows.add_lines(file, bad)
        num_rows += rows.height
        if rows.height:
            yield rows
    if not num_rows:
        raise InputError(f"{file}: must have at least one good row after the header")


def parse_block(block: Block, layout: Format) -> tuple[pl.DataFrame, list[BadLine]]:
    """Returns the good rows of a block, and its bad lines."""
    data, numbers = good_lines(block, layout.pattern)
    schema, missing = layout.schema, ["", "NULL"]
    if data:
        rows = pl.read_csv(data, has_header=False, schema=schema, quote_char=None, null_values=missing)
    else:
        rows = pl.DataFrame(schema=schema)
    return rows.with_columns(line=numbers), bad_lines(block, numbers, layout.reason)
