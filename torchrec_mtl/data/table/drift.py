"""How far rows differ from the training rows, field by field: missing values, unknown ids, stability of bins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from torchrec_mtl.data.batches import MultiTaskBatch
from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.raw.hashes import finalise
from torchrec_mtl.data.table.any_id import NO_VALUE, AnyId
from torchrec_mtl.data.table.encoders import TableEncoder
from torchrec_mtl.data.table.fields import MISSING, IdField
from torchrec_mtl.data.table.ids import History, Integers, Vocabulary, is_null
from torchrec_mtl.data.table.rows import TypedRows
from torchrec_mtl.errors import InputError

_RANGES = 32
MOST_BINS = 64  # a field with more ids is counted in 32 ranges of ids, a vocabulary in ranges that double
_SCORES = np.arange(-2, 2.1, 0.5)  # standard scores between which a dense field is counted


@dataclass(frozen=True)
class FieldCounts:
    """What is counted of a field.

    Args:
        num_values: number of values, missing ones included.
        num_missing: number of missing values.
        num_unknown: number of values that a vocabulary does not have.
        bins: number of the other values in each bin, in the order of ids or numbers.

    Example::

        >>> FieldCounts(10, 1, 2, (3, 4)) + FieldCounts(10, 0, 0, (5, 5))
        FieldCounts(num_values=20, num_missing=1, num_unknown=2, bins=(8, 9))
    """

    num_values: int
    num_missing: int
    num_unknown: int
    bins: Sequence[int]

    def __add__(self, other: "FieldCounts") -> "FieldCounts":
        return FieldCounts(
            self.num_values + other.num_values,
            self.num_missing + other.num_missing,
            self.num_unknown + other.num_unknown,
            tuple(a + b for a, b in zip(self.bins, other.bins, strict=True)),
        )

    @property
    def missing(self) -> float:
        """Share of missing values; 0 without values."""
        return self.num_missing / max(self.num_values, 1)

    @property
    def unknown(self) -> float:
        """Share of unknown ids; 0 without values."""
        return self.num_unknown / max(self.num_values, 1)


def population_stability(expected: Sequence[int], found: Sequence[int]) -> float:
    """Returns the population stability index of two histograms: 0 if they are alike, above 0.25 if they differ much.

    It is ``sum((q - p) ln(q / p))`` over bins, with ``p`` and ``q`` the shares of each bin; half a value is added to
    each bin, so that it is defined for empty ones. NaN if one of them has no value.

    Args:
        expected: number of values in each bin of the training rows, [K].
        found: number of values in each bin of other rows, [K].

    Raises:
        InputError: if they do not have the same number of bins.

    Example::

        >>> population_stability([50, 50], [500, 500])
        0.0
        >>> round(population_stability([50, 50], [25, 75]), 3)
        0.269
    """
    if len(expected) != len(found):
        raise InputError(f"`found` (of {len(found)} bins) must have the bins of `expected` ({len(expected)})")
    if not sum(expected) or not sum(found):
        return float("nan")
    p, q = (np.asarray(counts, np.float64) + 0.5 for counts in (expected, found))
    p, q = p / p.sum(), q / q.sum()
    return float(((q - p) * np.log(q / p)).sum())


def count_rows_of_fields(encoder: TableEncoder, rows: TypedRows) -> dict[str, FieldCounts]:
    """Counts the values of every field that ``rows`` have; a history is counted as the field that it lists."""
    declared = [each for each in encoder.table.fields if not isinstance(each, History)]
    return {each.name: _count(encoder, each.name, rows.values[each.name].flat) for each in declared}


def count_encoded(encoder: TableEncoder, batch: MultiTaskBatch) -> dict[str, FieldCounts]:
    """Counts missing values and unknown ids of rows that ``encoder`` has encoded, histories included; no bins.

    A missing value of `Integers` counts as the id that stands for it, and so does an unknown one that shares the id of
    missing ones; numbers count where they mark missing ones.
    """
    counts, dense = {}, [column for each in encoder.table.dense_fields for column in each.dense]
    for each in encoder.table.id_fields:
        owner, ids = encoder.table.owner(each), batch.sparse_features[each.name].values()
        missing = owner.missing if isinstance(owner, Integers) else NO_VALUE if isinstance(owner, AnyId) else MISSING
        num_unknown = 0
        if isinstance(owner, Vocabulary) and owner.unknown_id != MISSING:
            num_unknown = int((ids == owner.unknown_id).sum())
        counts[each.name] = FieldCounts(
            len(ids), 0 if missing is None else int((ids == missing).sum()), num_unknown, ()
        )
    for number in encoder.table.dense_fields:
        if number.mark_missing:
            marks = batch.dense_features[:, dense.index(number.dense[-1])]
            counts[number.name] = FieldCounts(len(marks), int(marks.sum()), 0, ())
    return counts


def added(first: Mapping[str, FieldCounts], second: Mapping[str, FieldCounts]) -> dict[str, FieldCounts]:
    """Returns the sums of two counts of the same fields; either may be empty."""
    return {name: first[name] + second[name] for name in first} if first and second else dict(first or second)


def _count(encoder: TableEncoder, name: str, values: pa.Array) -> FieldCounts:
    declared = encoder.table.by_name[name]
    known = values.filter(pa.array(~is_null(values)))
    num_missing = len(values) - len(known)
    if not isinstance(declared, IdField):
        fitted = encoder.fitted[name]
        scores = (known.cast(pa.float64()).to_numpy(zero_copy_only=False) - fitted["mean"]) / fitted["std"]
        bins = np.bincount(np.searchsorted(_SCORES, scores), minlength=len(_SCORES) + 1)
        return FieldCounts(len(values), num_missing, 0, tuple(bins.tolist()))
    ids, num_ids, num_unknown = encoder.ids(name, known), encoder.num_embeddings(name), 0
    declared = encoder.table.owner(declared)
    if isinstance(declared, Vocabulary):
        num_unknown = int((ids == declared.unknown_id).sum())
        ids = ids[ids != declared.unknown_id]
    last = _RANGES - 1 if isinstance(declared, AnyId) else int(_bins(np.array([num_ids - 1]), num_ids, declared)[0])
    bins = np.bincount(_bins(ids, num_ids, declared), minlength=last + 1)
    return FieldCounts(len(values), num_missing, num_unknown, tuple(bins.tolist()))


def _bins(ids: Array, num_ids: int, declared: IdField) -> Array:
    """The bin of each id, counted from 0."""
    if isinstance(declared, AnyId):  # ranges of ids say nothing: those of their hashes are alike as long as ids are
        return (finalise(ids.astype(np.uint64)) >> np.uint64(59)).astype(np.int64)  # 2^5 of them
    if num_ids <= MOST_BINS:
        return ids
    if isinstance(declared, Vocabulary) and declared.order == "count":  # ranks 1, 2-3, 4-7, ...
        return np.asarray(np.frexp(ids - declared.unknown_id)[1] - 1)
    return np.asarray(ids * _RANGES // num_ids)
