"""Columns of raw rows as one of few types, and the rows that break a rule.

Every raw column becomes one of: *keys* (strings or int64), *integers* (int64), *numbers* (float64), *times* (int64,
microseconds since 1970, UTC), *labels* (float64, 0 or 1). Missing values stay null.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from torchrec_mtl.data.lists import Array
from torchrec_mtl.errors import InputError

Role = Literal["key", "integer", "number", "time", "label"]
TIME_UNITS = {"s": 10**6, "ms": 10**3, "us": 1, "ns": None}
_EXACT = 2**53  # above it, a float64 does not hold every integer
_NUMBER = r"^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?$|^[+-]?(nan|NaN|NAN|inf|Inf|INF|infinity)$"


@dataclass
class Part:
    """Some rows of a source.

    Args:
        batch: the rows, as they were read.
        source: file, or another name of the rows in messages.
        first_row: number of the first row in the source, counted from 0.

    Attributes:
        bad: for each row, whether it breaks a rule.
        reasons: column, rule and value of the first broken rule of each bad row, by its position.
    """

    batch: pa.RecordBatch
    source: str
    first_row: int = 0
    bad: Array = field(init=False)
    reasons: dict[int, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.bad = np.zeros(self.batch.num_rows, bool)

    def column(self, name: str) -> pa.Array:
        """Returns a column; dictionaries are decoded.

        Raises:
            InputError: if there is no such column, or there are several.
        """
        names = self.batch.schema.names
        if names.count(name) != 1:
            what = "is missing" if name not in names else f"is there {names.count(name)} times"
            raise InputError(f"{self.source}: column {name!r} {what}; the columns are {names}")
        column = self.batch.column(names.index(name))
        return column.dictionary_decode() if types.is_dictionary(column.type) else column

    def reject(self, column: str, rows: Array, rule: str, value: Callable[[int], Any]) -> None:
        """Marks the rows at positions ``rows`` as bad; ``rule`` has ``{}`` where the value belongs."""
        for row in np.unique(rows).tolist():
            if not self.bad[row]:
                self.bad[row] = True
                self.reasons[row] = f"column {column!r}, row {self.first_row + row} (counted from 0): " + rule.format(
                    repr(value(row))[:60]
                )

    def wrong_type(self, column: str, rule: str, found: pa.DataType) -> InputError:
        return InputError(f"{self.source}: column {column!r} must hold {rule}, not {found}")


@dataclass(frozen=True)
class Values:
    """The values of a column, one for each row, or lists of values.

    Args:
        flat: values [V], null where missing.
        offsets: offsets [N + 1] of each row's list in ``flat``; None if each row has one value.
    """

    flat: pa.Array
    offsets: Array | None = None

    def take(self, rows: Array) -> "Values":
        """Returns the values of the rows where the mask ``rows`` [N] is True."""
        offsets = None if self.offsets is None else np.concatenate([[0], np.diff(self.offsets)[rows].cumsum()])
        return Values(self.flat.filter(pa.array(self.of_rows(rows))), offsets)

    def of_rows(self, rows: Array) -> Array:
        """Returns the mask [V] of the values that belong to the rows where the mask ``rows`` [N] is True."""
        return rows if self.offsets is None else np.repeat(rows, np.diff(self.offsets))


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
        if not (types.is_string(array.type) or types.is_large_string(array.type)):
            raise part.wrong_type(column, f"text with {separator!r} between its values", array.type)
        array = pc.split_pattern(pc.if_else(pc.equal(array, ""), None, array), separator)
    offsets = None
    if types.is_list(array.type) or types.is_large_list(array.type) or types.is_fixed_size_list(array.type):
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int64)
        array = pc.list_flatten(array)
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()

    def reject(bad: Array, rule: str) -> None:
        positions = np.flatnonzero(bad)
        rows = positions if offsets is None else np.searchsorted(offsets, positions, side="right") - 1
        first = dict(zip(reversed(rows.tolist()), reversed(positions.tolist()), strict=True))
        part.reject(column, rows, rule, lambda row: array[first[row]].as_py())

    values = _READERS[role](part, column, array, reject, unit)
    return Values(values, offsets)


Reject = Callable[[Array, str], None]


def _keys(part: Part, column: str, array: pa.Array, reject: Reject, unit: str | None) -> pa.Array:
    if _is_text(array.type):
        text = array.cast(pa.large_string())
        return pc.if_else(pc.equal(text, ""), None, text)
    return _integers(part, column, array, reject, unit)


def _integers(part: Part, column: str, array: pa.Array, reject: Reject, unit: str | None) -> pa.Array:
    if _is_text(array.type):
        text = pc.if_else(pc.equal(array, ""), None, array)
        bad = _mask(pc.invert(pc.match_substring_regex(text, r"^[+-]?\d{1,18}$")))
        reject(bad, "{} must be an integer")
        return pc.if_else(pa.array(bad), None, text).cast(pa.int64())
    if types.is_null(array.type):
        return array.cast(pa.int64())
    if types.is_boolean(array.type) or (types.is_integer(array.type) and array.type != pa.uint64()):
        return array.cast(pa.int64())
    if array.type == pa.uint64():
        bad = _mask(pc.greater(array, 2**63 - 1))
        reject(bad, "{} must be below 2^63")
        return pc.if_else(pa.array(bad), None, array).cast(pa.int64())
    if types.is_floating(array.type):
        numbers = pc.if_else(pc.is_nan(array), None, array.cast(pa.float64()))
        bad = _mask(pc.not_equal(numbers, pc.trunc(numbers)))
        reject(bad, "{} must be an integer")
        large = _mask(pc.greater_equal(pc.abs(numbers), float(_EXACT)))
        reject(large, "{} must be below 2^53: as a float, it may not be the integer that was meant")
        return pc.if_else(pa.array(bad | large), None, numbers).cast(pa.int64())
    raise part.wrong_type(column, "strings or integers", array.type)


def _numbers(part: Part, column: str, array: pa.Array, reject: Reject, unit: str | None) -> pa.Array:
    if _is_text(array.type):
        text = pc.utf8_trim_whitespace(array)
        text = pc.if_else(pc.equal(text, ""), None, text)
        bad = _mask(pc.invert(pc.match_substring_regex(text, _NUMBER)))
        reject(bad, "{} must be a number")
        numbers = pc.if_else(pa.array(bad), None, text).cast(pa.float64())
    elif _is_number(array.type) or types.is_decimal(array.type) or types.is_null(array.type):
        numbers = array.cast(pa.float64(), safe=False)
    else:
        raise part.wrong_type(column, "numbers", array.type)
    numbers = pc.if_else(pc.is_nan(numbers), None, numbers)
    bad = _mask(pc.is_inf(numbers))
    reject(bad, "{} must be finite")
    return pc.if_else(pa.array(bad), None, numbers)


def _times(part: Part, column: str, array: pa.Array, reject: Reject, unit: str | None) -> pa.Array:
    if types.is_timestamp(array.type) or types.is_date(array.type):
        return array.cast(pa.timestamp("us", getattr(array.type, "tz", None)), safe=False).cast(pa.int64())
    if _is_text(array.type) and unit is None:
        text = pc.if_else(pc.equal(array, ""), None, array)
        try:
            return text.cast(pa.timestamp("us", "UTC" if _has_zone(text) else None)).cast(pa.int64())
        except pa.ArrowInvalid:
            bad = np.array([_time_or_none(each) is None for each in text.to_pylist()]) & _mask(pc.is_valid(text))
            reject(bad, "{} must be a time such as 2026-11-01 or 2026-11-01T08:30:00")
            times = [_time_or_none(each) for each in text.to_pylist()]
            return pa.array(times, pa.int64())
    integers = _integers(part, column, array, reject, unit)
    if unit is None:
        raise part.wrong_type(column, "times, or integers with a declared `time_unit`", array.type)
    factor = TIME_UNITS[unit]
    return pc.divide(integers, 1000) if factor is None else pc.multiply(integers, factor)


def _labels(part: Part, column: str, array: pa.Array, reject: Reject, unit: str | None) -> pa.Array:
    numbers = _numbers(part, column, array, reject, unit)
    values = numbers.to_numpy(zero_copy_only=False)
    reject(~((values == 0) | (values == 1)), "label {} must be 0 or 1")
    return numbers


_READERS = {"key": _keys, "integer": _integers, "number": _numbers, "time": _times, "label": _labels}


def _is_text(kind: pa.DataType) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def _mask(array: Any) -> Array:
    """Returns booleans as an array, False for null."""
    return np.asarray(pc.fill_null(array, False).to_numpy(zero_copy_only=False))


def _has_zone(text: pa.Array) -> bool:
    return bool(pc.any(pc.match_substring_regex(text, r"(Z|[+-]\d\d:?\d\d)$")).as_py())


def _time_or_none(text: str | None) -> int | None:
    if text is None:
        return None
    array = pa.array([text])
    try:
        return int(array.cast(pa.timestamp("us", "UTC" if _has_zone(array) else None)).cast(pa.int64())[0].as_py())
    except pa.ArrowInvalid:
        return None
