"""Fields whose values are ids: by a vocabulary, by a hash, as they are, from a time, from earlier rows."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.table.columns import Role
from torchrec_mtl.data.table.fields import DAY, MISSING, Fitted, IdField
from torchrec_mtl.data.table.hashes import stable_hashes
from torchrec_mtl.data.table.lookup import Lookup
from torchrec_mtl.data.table.parts import Part, Values
from torchrec_mtl.errors import InputError, check_at_least, check_choice


@dataclass(frozen=True)
class Vocabulary(IdField):
    """A field whose ids are the values of the training rows, most frequent first.

    Id 0 stands for a missing value, id 1 for a value that the vocabulary does not have, ids from 2 for its values.

    Args:
        name: name of the field. For the further arguments, see `Hashed`, which has them too.
        min_count: how often a value must occur in the training rows; later, in the rows of one day.
        max_size: largest number of values of the training rows; the most frequent are kept.
        order: order of the values' ids: by "count", the most frequent first, or by "value", ascending.
        unknown: id of a value that the vocabulary does not have: its "own", 1, or that of a "missing" value, 0, so that
            ids from 1 stand for the vocabulary's values.
        spare_rows: number of further values that the table has rows for, which later days bring: see `extended`.

    Example::

        >>> field = Vocabulary("city", min_count=2)
        >>> fitted = field.fit(pl.DataFrame({"value": ["Rome", "Bonn"], "count": [5, 1]}))
        >>> field.encode(pa.array(["Rome", "Bonn", None]), fitted).tolist()
        [2, 1, 0]
        >>> field = Vocabulary("city", order="value", unknown="missing")
        >>> fitted = field.fit(pl.DataFrame({"value": ["Rome", "Bonn"], "count": [5, 1]}))
        >>> field.encode(pa.array(["Rome", "Bonn", "Oslo", None]), fitted).tolist()
        [2, 1, 0, 0]
    """

    _: KW_ONLY
    min_count: int = 1
    max_size: int | None = None
    order: Literal["count", "value"] = "count"
    unknown: Literal["own", "missing"] = "own"
    spare_rows: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, **{f"min_count` of field `{self.name}": self.min_count})
        check_at_least(0, **{f"spare_rows` of field `{self.name}": self.spare_rows})
        check_choice(f"order` of field `{self.name}", self.order, ("count", "value"))
        check_choice(f"unknown` of field `{self.name}", self.unknown, ("own", "missing"))
        if self.max_size is not None:
            check_at_least(1, **{f"max_size` of field `{self.name}": self.max_size})

    @property
    def unknown_id(self) -> int:
        """The id of a value that the vocabulary does not have; those of its values follow."""
        return MISSING if self.unknown == "missing" else MISSING + 1

    def to_count(self, values: pa.Array) -> pa.Array:
        return values

    def fit(self, counts: pl.DataFrame) -> Fitted:
        kept = counts.filter(pl.col("count") >= self.min_count).head(self.max_size or counts.height)
        kept = kept.sort("value") if self.order == "value" else kept
        fitted: Fitted = {"values": Lookup(kept["value"].to_arrow())}
        return {**fitted, "rows": self._size(kept.height + self.spare_rows)} if self.spare_rows else fitted

    def _size(self, num_values: int) -> int:
        return self.unknown_id + 1 + num_values

    def extended(self, fitted: Fitted, counts: pl.DataFrame) -> tuple[Fitted, int]:
        """Appends the values of later rows, most frequent first, as long as the table has rows; no id changes.

        Args:
            fitted: what was fitted so far.
            counts: ``value`` and ``count`` of the later rows.

        Returns:
            What is fitted now, and the number of values for which no row is left, which stay unknown.

        Example::

            >>> field = Vocabulary("city", spare_rows=1)
            >>> fitted = field.fit(pl.DataFrame({"value": ["Rome"], "count": [5]}))
            >>> counts = pl.DataFrame({"value": ["Bonn", "Rome", "Oslo"], "count": [3, 2, 1]})
            >>> fitted, num_left_out = field.extended(fitted, counts)
            >>> field.encode(pa.array(["Rome", "Bonn", "Oslo"]), fitted).tolist(), num_left_out
            ([2, 3, 1], 1)
        """
        known: Lookup = fitted["values"]
        values = counts.filter(pl.col("count") >= self.min_count)["value"].to_arrow()
        new = values.filter(pa.array(known.find(values) < 0))
        added = new[: self.num_embeddings(fitted) - self._size(len(known))]
        if not len(added):
            return fitted, len(new)
        whole = pa.concat_arrays([known.values, added.cast(known.values.type)]) if len(known) else added
        return {**fitted, "values": Lookup(whole)}, len(new) - len(added)

    def num_embeddings(self, fitted: Fitted) -> int:
        return int(fitted.get("rows", self._size(len(fitted["values"]))))

    def encode(self, values: pa.Array, fitted: Fitted) -> Array:
        ids = fitted["values"].find(values) + self.unknown_id + 1  # position -1 is unknown
        return np.where(is_null(values), MISSING, ids) if self.unknown_id and values.null_count else ids


@dataclass(frozen=True)
class Hashed(IdField):
    """A field whose ids are hashes of its values: id 0 for a missing value, ids 1 to ``num_buckets`` for the others.

    Hashes are those of `torchrec_mtl.data.table.hashes`: they depend neither on the machine nor on a version.

    Args:
        name: name of the field.
        num_buckets: number of hashes.
        column: raw column to read; the field's name by default.
        separator: text between the values of a list that is written as a string; columns of lists need none.
        weights: column of lists with a weight for each id; only for lists.
        shares: name of another field of the same kind, whose ids and table this field uses.
        embedding_dim: dimension of the table; by default that of the run.
        pooling: how a list's embeddings are joined, "sum" or "mean"; for all fields of one table.
        init_std: standard deviation of the table's first values; by default that of the run.

    Example::

        >>> Hashed("city", 1000).encode(pa.array(["Rome", None, "Rome"]), {}).tolist()
        [960, 0, 960]
    """

    num_buckets: int = 2**16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, **{f"num_buckets` of field `{self.name}": self.num_buckets})

    def num_embeddings(self, fitted: Fitted) -> int:
        return self.num_buckets + 1

    def encode(self, values: pa.Array, fitted: Fitted) -> Array:
        buckets = stable_hashes(values) % np.uint64(self.num_buckets)
        return np.where(is_null(values), MISSING, buckets.astype(np.int64) + 1)


@dataclass(frozen=True)
class Integers(IdField):
    """A field whose values are ids as they are, ``0 .. num_embeddings - 1``.

    Args:
        name: name of the field. For the further arguments, see `Hashed`, which has them too.
        num_ids: number of ids.
        missing: id that stands for a missing value; by default, a missing value is refused.

    Example::

        >>> Integers("weekday", 7).encode(pa.array([6, 0]), {}).tolist()
        [6, 0]
    """

    num_ids: int = 1
    _: KW_ONLY
    missing: int | None = None

    role: ClassVar[Role] = "integer"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, **{f"num_ids` of field `{self.name}": self.num_ids})
        if self.missing is not None and not 0 <= self.missing < self.num_ids:
            raise self._error("missing", f"must be at least 0 and below `num_ids` (={self.num_ids})")

    def checked(self, values: Values, part: Part, column: str) -> Values:
        limit = f"`num_ids` (={self.num_ids})"
        return checked_range(values, part, column, self.num_ids, limit, missing=self.missing is not None)

    def num_embeddings(self, fitted: Fitted) -> int:
        return self.num_ids

    def encode(self, values: pa.Array, fitted: Fitted) -> Array:
        return np.asarray(pc.fill_null(values, self.missing or 0).to_numpy(zero_copy_only=False))


@dataclass(frozen=True)
class TimeOf(IdField):
    """The hour or the weekday of a time, UTC: 0 for a missing time, 1 for midnight to 1 h, or for Monday.

    Args:
        name: name of the field. For the further arguments, see `Hashed`, which has them too.
        part: "hour" or "weekday".

    Example::

        >>> TimeOf("hour", "hour").encode(pa.array([0, 3600 * 10**6 * 25, None]), {}).tolist()
        [1, 2, 0]
    """

    part: Literal["hour", "weekday"] = "hour"

    role: ClassVar[Role] = "time"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(f"part` of field `{self.name}", self.part, ("hour", "weekday"))

    def num_embeddings(self, fitted: Fitted) -> int:
        return 25 if self.part == "hour" else 8

    def encode(self, values: pa.Array, fitted: Fitted) -> Array:
        times = pc.fill_null(values, 0).to_numpy(zero_copy_only=False)
        ids = times // (DAY // 24) % 24 if self.part == "hour" else (times // DAY + 3) % 7  # 1970 began on a Thursday
        return np.where(is_null(values), MISSING, ids + 1)


@dataclass(frozen=True)
class History(IdField):
    """The last values of another field in the group's earlier rows, as a list; newest last.

    Earlier means strictly before the row's time: rows of equal time do not see each other. The list has the encoder and
    the table of the other field.

    Args:
        name: name of the field. When new rows are scored, they bring this column themselves, as lists of raw values.
        of: name of the field whose values are listed; it must not hold lists itself.
        last: largest number of values.
        within: how long before the row, such as "30d", "12h" or "15m"; by default there is no limit.
        where: name of a task: only rows in which it happened are listed.
        pooling: how embeddings are joined, "sum" or "mean".

    Example::

        >>> History("recent_items", "item", last=20, within="30d").within_us // DAY
        30
    """

    of: str = ""
    _: KW_ONLY
    last: int = 50
    within: str | None = None
    where: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.of, str) or not self.of:
            raise self._error("of", "must name another field")
        if self.shares is not None or self.weights is not None or self.column is not None:
            raise InputError(f"field {self.name!r}: a history has no `shares`, `weights` or `column`")
        check_at_least(1, **{f"last` of field `{self.name}": self.last})
        if self.within is not None:
            duration(f"within` of field `{self.name}", self.within)

    @property
    def within_us(self) -> int | None:
        """The window in microseconds; None if there is no limit."""
        return None if self.within is None else duration("within", self.within)


def checked_range(values: Values, part: Part, column: str, end: int, limit: str, *, missing: bool) -> Values:
    """Returns integers of ``column``, and marks the rows of ``part`` with others than ``0 .. end - 1``.

    Args:
        values: the integers.
        part: the rows.
        column: name of the column.
        end: end of the range.
        limit: what ``end`` is, in the message.
        missing: whether a value may be missing.
    """
    outside = pc.or_(pc.less(values.flat, 0), pc.greater_equal(values.flat, end))
    if not missing:
        outside = outside.fill_null(True)
    rows, positions = values.first_of_rows(outside.fill_null(False).to_numpy(zero_copy_only=False))
    first = dict(zip(rows.tolist(), positions.tolist(), strict=True))
    rule = f"id {{}} must be at least 0 and below {limit}"
    part.reject(column, rows, rule, lambda row: values.flat[first[row]].as_py())
    return Values(pc.if_else(outside, None, values.flat), values.offsets)


def duration(argument: str, text: str) -> int:
    """Returns a time span such as "30d", "12h", "15m" or "20s" in microseconds.

    Raises:
        InputError: if ``text`` is not of this form.
    """
    units = {"d": DAY, "h": DAY // 24, "m": DAY // 1440, "s": 10**6}
    if not (isinstance(text, str) and text[:-1].isdigit() and text[-1:] in units and int(text[:-1])):
        raise InputError(f"`{argument}` (={text!r}) must be a time span such as '30d', '12h', '15m' or '20s'")
    return int(text[:-1]) * units[text[-1]]


def is_null(values: pa.Array) -> Array:
    return np.asarray(values.is_null().to_numpy(zero_copy_only=False))
