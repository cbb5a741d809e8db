"""Compares Polars's parsing of lines with a plain parser, for tests and the fuzzer."""

import re

import polars as pl

from torchrec_mtl.data.raw.lines import Block
from torchrec_mtl.datasets.taobao.layout import AD_FEATURE, BEHAVIOR_LOG, RAW_SAMPLE, USER_PROFILE, Format
from torchrec_mtl.datasets.taobao.lines import parse_block

LAYOUTS = {layout.name.removesuffix(".csv"): layout for layout in (RAW_SAMPLE, AD_FEATURE, USER_PROFILE, BEHAVIOR_LOG)}


def values(line: str, layout: Format) -> tuple | None:
    """Returns the values of a line, read without Polars; None if the line is bad."""
    parts = line.split(",")
    if len(parts) != len(layout.columns):
        return None
    found: list = []
    for column, part in zip(layout.columns, parts, strict=True):
        if part in ("", "NULL") and column.optional:
            found.append(None)
        elif column.dtype == pl.Float64 and re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,15})?(E[0-9]{1,2})?", part):
            found.append(float(part))
        elif column.dtype in (pl.String, pl.Enum) and re.fullmatch("[0-9]{1,9}_[0-9]{1,9}|pv|cart|fav|buy", part):
            if (column.dtype == pl.Enum) != part.isalpha():
                return None
            found.append(part)
        elif column.dtype == pl.UInt8 and part in ("0", "1"):
            found.append(int(part))
        elif column.dtype == pl.Int64 and re.fullmatch("[0-9]{1,18}", part):
            if column.name == "time_stamp" and len(part) > 10:
                return None
            found.append(int(part))
        else:
            return None
    return tuple(found)


def agree(lines: list[str], layout: Format, first_line: int = 2, ended: bool = True) -> None:
    """Checks that ``parse_block`` reads ``lines`` as `values` does: each is a row, or a bad line with a reason."""
    rows, bad = parse_block(Block(first_line, "\n".join(lines).encode("latin-1"), ended), layout)
    read = [values(line, layout) for line in lines]
    if not ended:
        read[-1] = None
    numbered = list(zip(read, range(first_line, first_line + len(lines)), strict=True))
    assert rows.rows() == [(*row, number) for row, number in numbered if row is not None]
    assert [line.number for line in bad] == [number for row, number in numbered if row is None]
    assert [line.text for line in bad] == [line for line, row in zip(lines, read, strict=True) if row is None]
    assert all(line.reason for line in bad)
