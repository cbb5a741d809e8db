"""Guesses what a raw column is, from its name and its first values."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from torchrec_mtl.data.table.columns import Role, read_values
from torchrec_mtl.data.table.parts import Part, Values
from torchrec_mtl.errors import InputError

FEW_TEXTS, FEW_INTEGERS = 1000, 100  # distinct values: with more, rare ones get no id, and integers are numbers


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


EVENTS = _words(  # how words of label columns begin, in the order of a funnel
    "click view open visit play like favo share follow comment rate cart basket checkout order buy bought purchas sale "
    "pay paid install register signup subscrib download finish complete conver label target"
)
_USERS = _words("user uid customer member visitor household buyer person viewer client account session device")
_ITEMS = _words(
    "item product sku article goods asin ad creative movie song track video document doc page listing book news game "
    "app hotel restaurant recipe"
)
_IDS = _words(
    "id ids key code hash uuid category cat cate brand shop store seller merchant campaign author channel city country "
    "region zip postcode tag tags word words term type kind page url"
)
_TIMES = _words("ts time timestamp datetime eventtime eventtimestamp date dt day")
_OTHER_TIMES = _words("birth signup regist publish releas expir first last start end")
_SEPARATORS = "|;,"
_OF_TEXT: tuple[Role, ...] = ("integer", "number", "time")  # what text may be, tried in this order
_HEAD = 100  # rows


@dataclass(frozen=True)
class Column:
    """What the first rows say of a column.

    Args:
        name: name of the column.
        kind: "key" for text, "integer", "number" or "time"; None if it cannot be a field.
        values: the values of these rows; None if it cannot be a field.
        reason: why it cannot be a field.
        separator: text between the values of a list that is written as a string.
        unit: unit of times that are integers.
    """

    name: str
    kind: Literal["key", "integer", "number", "time"] | None
    values: Values | None = None
    reason: str = ""
    separator: str | None = None
    unit: str | None = None

    @property
    def flat(self) -> pa.Array:
        """The values of these rows, of all lists one after the other."""
        assert self.values is not None
        return self.values.flat

    @property
    def is_list(self) -> bool:
        """Whether rows have lists."""
        return self.values is not None and self.values.offsets is not None

    @property
    def is_key(self) -> bool:
        """Whether rows have one text or integer each, by which they can be grouped or split."""
        return self.kind in ("key", "integer") and not self.is_list

    @property
    def num_distinct(self) -> int:
        """Number of distinct values, without the missing one."""
        return int(pc.count_distinct(self.flat).as_py())

    @property
    def words(self) -> list[str]:
        """The words of the name, in lower case.

        Example::

            >>> Column("isClick_v2", None).words
            ['is', 'click', 'v']
        """
        return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", self.name)]

    def is_named(self, words: Sequence[str]) -> bool:
        """Whether the name is one of ``words``, but for "id" and the like."""
        rest = [word for word in self.words if word not in ("id", "key", "hash", "no", "num", "code", "uuid")]
        return "".join(rest) in words or (len(self.words) == 1 and self.words[0].removesuffix("id") in words)

    @property
    def is_id(self) -> bool:
        """Whether the values are keys of something, rather than amounts."""
        named = self.is_named([*_USERS, *_ITEMS]) or any(word in _IDS for word in self.words)
        return self.kind == "key" or (self.kind == "integer" and (named or self.num_distinct <= FEW_INTEGERS))

    @property
    def is_binary(self) -> bool:
        """Whether rows have 0 or 1, or none."""
        if self.kind not in ("integer", "number") or self.is_list:
            return False
        least, most = pc.min_max(self.flat).as_py().values()
        return bool(least in (0, 1) and most in (0, 1) and self.num_distinct <= 2)

    @property
    def is_label(self) -> bool:
        """Whether every row has 0 or 1."""
        return self.is_binary and not self.flat.null_count

    @property
    def event(self) -> int | None:
        """The place in `EVENTS` of the event that the name tells, the last of several; None if it tells none."""
        places = [place for place, stem in enumerate(EVENTS) for word in self.words if word.startswith(stem)]
        return max(places, default=None)

    @property
    def user_rank(self) -> int | None:
        """How surely the name is that of a user, 0 the most; None if it is not."""
        return next((rank for rank, word in enumerate(_USERS) if self.is_named([word])), None)

    @property
    def item_rank(self) -> int | None:
        """How surely the name is that of what is shown, 0 the most; None if it is not."""
        return next((rank for rank, word in enumerate(_ITEMS) if self.is_named([word])), None)

    @property
    def time_rank(self) -> int:
        """How surely a time is that of the row, 0 the most."""
        if "".join(self.words) in _TIMES:
            return 0
        if any(word.startswith(other) for word in self.words for other in _OTHER_TIMES):
            return 3
        return 1 if any(word in ("time", "timestamp", "ts") for word in self.words) else 2


def look_at(part: Part, name: str) -> Column:
    """Returns what the rows of ``part`` say of a column."""
    if not name or part.batch.schema.names.count(name) > 1:
        return Column(name, None, reason="has no name of its own")
    array = part.column(name)
    if array.null_count == len(array):
        return Column(name, None, reason="has no value")
    inner = array.type.value_type if _is_list(array.type) else array.type
    if types.is_timestamp(inner) or types.is_date(inner):
        return _column(part, name, "time")
    if types.is_integer(inner) or types.is_boolean(inner):
        unit = _unit(part, name) if not _is_list(array.type) else None
        return _column(part, name, "time" if unit else "integer", unit=unit)
    if types.is_floating(inner):
        whole = _column(part, name, "integer")
        return whole if whole.kind else _column(part, name, "number")
    if types.is_decimal(inner):
        return _column(part, name, "number")
    if not (types.is_string(inner) or types.is_large_string(inner)):
        return Column(name, None, reason=f"has values of type {array.type}")
    return _text(part, name, lists=_is_list(array.type))


def _text(part: Part, name: str, *, lists: bool) -> Column:
    column = _column(part, name, "key")
    if not column.kind or lists:
        return column
    if column.num_distinct == 0:
        return Column(name, None, reason="has no value")
    if not _begins_with_zero(column.flat):
        for role in _OF_TEXT:
            found = _column(part, name, role)
            if found.kind == "integer" and (unit := _unit(part, name)):
                return _column(part, name, "time", unit=unit)
            if found.kind:
                return found
    for separator in _SEPARATORS:
        split = _column(part, name, "key", separator=separator)
        pieces = pc.mean(pc.greater(pc.count_substring(column.flat, separator), 0)).as_py()
        if split.kind and pieces > 0.1 and split.num_distinct < column.num_distinct / 2:
            return split
    return column


def _column(part: Part, name: str, role: Role, *, separator: str | None = None, unit: str | None = None) -> Column:
    """The column in a role; of no kind if a value has none in this role."""
    for num_rows in (_HEAD, part.batch.num_rows):  # most roles fail at once
        scratch = Part(part.batch.slice(0, num_rows), part.source)
        try:
            values = read_values(scratch, name, role, separator=separator, unit=unit)
        except InputError as error:
            return Column(name, None, reason=str(error).removeprefix(f"{part.source}: "))
        if scratch.bad.any():
            return Column(name, None, reason=next(iter(scratch.reasons.values())).partition("): ")[2])
    return Column(name, role, values, separator=separator, unit=unit)  # type: ignore[arg-type]


def _is_list(kind: pa.DataType) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _begins_with_zero(texts: pa.Array) -> bool:
    return bool(pc.any(pc.match_substring_regex(texts, r"^[+-]?0\d")).as_py())


def _unit(part: Part, name: str) -> str | None:
    """The unit in which integers, by their column's name times, lie between 2000 and 2100; None if there is none."""
    column = Column(name, None)
    if column.time_rank > 1 and not any(word in ("at", "on", "date") for word in column.words):
        return None
    integers = _column(part, name, "integer")
    if not integers.kind or not len(integers.flat.drop_null()):
        return None
    least, most = pc.min_max(integers.flat).as_py().values()
    for unit, factor in (("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)):
        if 946_684_800 * factor <= least and most <= 4_102_444_800 * factor:
            return unit
    return None
