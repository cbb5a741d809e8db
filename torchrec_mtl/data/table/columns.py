"""Columns of raw rows as one of few types.

Every raw column becomes one of: *keys* (strings or int64), *integers* (int64), *numbers* (float64), *times* (int64,
microseconds since 1970, UTC), *labels* (float64, 0 or 1). Missing values stay null.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.table.parts import Part, Values, decoded
from torchrec_mtl.errors import InputError

Role = Literal["key", "integer", "number", "time", "label"]
TIME_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # how many are a second
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_800  # of the years 1 to 9999
_EXACT = 2**53  # above it, a float64 does not hold every integer
_ZONE = r"[T ].*(Z|[+-]\d\d(:?\d\d)?)$"


def read_values(
    part: Part, column: str, role: Role, *, unit: str | None = None, separator: str | None = None
) -> Values:
    """Returns a column as values of a role, and marks the rows of ``part`` that have none.

    Args:
        part: the rows.
        column: name of the column.
        role: what the values are: see the head of this module.
        unit: unit of integers that are times: "s", "ms", "us" or "ns".
        separator: text between the values of a list that is written as a string.

    Raises:
        InputError: if the column is missing, or its type cannot hold such values.

    Example::

        >>> part = Part(pa.record_batch({"price": ["3.5", "", "x"]}), "shop.csv")
        >>> read_values(part, "price", "number").flat.to_pylist(), part.reasons
        ([3.5, None, None], {2: "column 'price', row 2 (counted from 0): 'x' must be a number"})
    """
    array = part.column(column)
    if separator is not None:
        if not (_is_text(array.type) or types.is_null(array.type)):
            raise part.wrong_type(column, f"text with {separator!r} between its values", array.type)
        array = pc.split_pattern(_text(array), separator)
    offsets = None
    if types.is_list(array.type) or types.is_large_list(array.type) or types.is_fixed_size_list(array.type):
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int64)
        array = decoded(pc.list_flatten(array))
    return Values(_READERS[role](_Column(part, column, array, offsets), unit), offsets)


def read_column(part: Part, column: str, role: Role, *, unit: str | None = None) -> pa.Array:
    """Returns a column of one value a row, as `read_values` does.

    Raises:
        InputError: if the column is missing, holds lists, or its type cannot hold such values.
    """
    values = read_values(part, column, role, unit=unit)
    if values.offsets is not None:
        raise part.wrong_type(column, "one value a row", part.column(column).type)
    return values.flat


@dataclass(frozen=True)
class _Column:
    part: Part
    name: str
    array: pa.Array  # values [V]
    offsets: Array | None

    def reject(self, bad: Any, rule: str) -> pa.Array:
        """Marks the rows of ``bad`` values [V] (null counts as False); returns the mask."""
        mask = np.asarray(pc.fill_null(bad, False).to_numpy(zero_copy_only=False))
        rows, positions = Values(self.array, self.offsets).first_of_rows(mask)
        first = dict(zip(rows.tolist(), positions.tolist(), strict=True))
        self.part.reject(self.name, rows, rule, lambda row: self.array[first[row]].as_py())
        return pa.array(mask)

    def wrong_type(self, rule: str) -> InputError:
        return self.part.wrong_type(self.name, rule, self.array.type)


def _keys(column: _Column, unit: str | None) -> pa.Array:
    return _text(column.array) if _is_text(column.array.type) else _integers(column, unit)


def _integers(column: _Column, unit: str | None) -> pa.Array:
    array = column.array
    if types.is_floating(array.type):
        numbers = _without_nan(array)
        bad = column.reject(pc.not_equal(numbers, pc.trunc(numbers)), "{} must be an integer")
        rule = "{} must be below 2^53: as a float, it may not be the integer that was meant"
        large = column.reject(pc.greater_equal(pc.abs(numbers), float(_EXACT)), rule)
        return pc.if_else(pc.or_(bad, large), None, numbers).cast(pa.int64())
    if _is_text(array.type):
        array = _text(array)
    elif types.is_int64(array.type):
        return array
    elif not (types.is_integer(array.type) or types.is_boolean(array.type) or types.is_null(array.type)):
        raise column.wrong_type("strings or integers")
    return _parsed(column, array, pl.Int64(), "{} must be an integer below 2^63")


def _numbers(column: _Column, unit: str | None) -> pa.Array:
    array = column.array
    if _is_text(array.type):
        numbers = _parsed(column, _text(pc.utf8_trim_whitespace(_text(array))), pl.Float64(), "{} must be a number")
    elif types.is_integer(array.type) or types.is_floating(array.type) or types.is_decimal(array.type):
        numbers = array.cast(pa.float64(), safe=False)
    elif types.is_boolean(array.type) or types.is_null(array.type):
        numbers = array.cast(pa.float64())
    else:
        raise column.wrong_type("numbers")
    numbers = _without_nan(numbers)
    return pc.if_else(column.reject(pc.is_inf(numbers), "{} must be finite"), None, numbers)


def _times(column: _Column, unit: str | None) -> pa.Array:
    array, zoned = column.array, None
    if types.is_timestamp(array.type) or types.is_date(array.type):
        zone = getattr(array.type, "tz", None)
        zoned, times = zone is not None, array.cast(pa.timestamp("us", zone), safe=False).cast(pa.int64())
    elif _is_text(array.type) and unit is None:
        text = _text(array)
        has_zone = pc.match_substring_regex(text, _ZONE)
        zoned = (pc.mean(has_zone).as_py() or 0) > 0.5
        times = _parse_times(text, pa.timestamp("us", "UTC" if zoned else None))
        example = "2026-11-01T08:30:00Z, with a zone as others have" if zoned else "2026-11-01 or 2026-11-01T08:30:00"
        column.reject(pc.and_(text.is_valid(), times.is_null()), "{} must be a time such as " + example)
    elif unit is None and not types.is_null(array.type):
        raise column.wrong_type("times, or integers with a declared `time_unit`")
    else:
        per_second = TIME_UNITS[unit or "us"]
        known = _integers(column, unit)
        rule = "{} must be a time in the years 1 to 9999: is `time_unit` right"
        seconds = pa.array(known.fill_null(0).to_numpy() // per_second)
        outside = pc.or_(pc.less(seconds, _FIRST_SECOND), pc.greater_equal(seconds, _LAST_SECOND))
        inside = pc.if_else(column.reject(outside, rule), 0, known.fill_null(0)).to_numpy()
        microseconds = inside * (10**6 // per_second) if per_second <= 10**6 else inside // (per_second // 10**6)
        times = pc.if_else(pc.or_(known.is_null(), outside), None, pa.array(microseconds))
    if zoned is not None and times.null_count < len(times):
        column.part.zoned[column.name] = zoned
    return times


def _labels(column: _Column, unit: str | None) -> pa.Array:
    numbers = _numbers(column, unit)
    column.reject(pc.invert(pc.or_(pc.equal(numbers, 0), pc.equal(numbers, 1))), "label {} must be 0 or 1")
    return numbers


_READERS = {"key": _keys, "integer": _integers, "number": _numbers, "time": _times, "label": _labels}


def _is_text(kind: pa.DataType) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _text(array: pa.Array) -> pa.Array:
    """Text, null where it is empty."""
    text = array.cast(pa.large_string())
    return pc.if_else(pc.equal(text, ""), None, text)


def _without_nan(array: pa.Array) -> pa.Array:
    numbers = array.cast(pa.float64())
    return pc.if_else(pc.is_nan(numbers), None, numbers)


def _parsed(column: _Column, array: pa.Array, kind: pl.DataType, rule: str) -> pa.Array:
    parsed = pl.Series(array).cast(kind, strict=False).to_arrow()
    column.reject(pc.and_(array.is_valid(), parsed.is_null()), rule)
    return parsed


def _parse_times(text: pa.Array, kind: pa.DataType) -> pa.Array:
    """Microseconds since 1970; null where there is no time of this kind."""
    try:
        return text.cast(kind).cast(pa.int64())
    except pa.ArrowInvalid:
        if len(text) == 1:
            return pa.nulls(1, pa.int64())
        half = len(text) // 2
        return pa.concat_arrays([_parse_times(text[:half], kind), _parse_times(text[half:], kind)])
