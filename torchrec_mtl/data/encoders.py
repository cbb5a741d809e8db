"""Encodes raw columns as ids of embedding tables: vocabularies of raw ids, log-rounded numbers (TAFE eq. 13)."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from torchrec_mtl.data.id_columns import id_type
from torchrec_mtl.data.lists import Array, as_array
from torchrec_mtl.errors import InputError, check_at_least, shown

VOCABULARIES_FILE = "vocabularies.parquet"
NUM_PENDING = 2**18  # ids collected before they are counted
NUM_COUNTED = 2**22  # counts collected before they are added up


def find(known: Array, ids: Array) -> Array:
    """Returns the positions of ``ids`` in the sorted array ``known``; -1 where an id is absent.

    Example::

        >>> find(np.array([3, 5]), np.array([5, 4, 3])).tolist()
        [1, -1, 0]
    """
    if not len(known):
        return np.full(len(ids), -1)
    positions = np.minimum(known.searchsorted(ids), len(known) - 1)
    return np.where(known[positions] == ids, positions, -1)


class ValueCounts:
    """Counts the raw ids of a field, part by part."""

    def __init__(self) -> None:
        self._pending: list[pl.DataFrame] = []
        self._counts: list[pl.DataFrame] = []

    def add(self, ids: Array, weights: Array | None = None) -> None:
        """Adds ``ids`` (int64), each counted once, or ``weights`` times."""
        weights = np.ones(len(ids), np.int64) if weights is None else weights
        self._pending.append(pl.DataFrame({"id": ids, "weight": weights}))
        if _num_rows(self._pending) > NUM_PENDING:
            self._count_pending()

    def at_least(self, min_count: int) -> Array:
        """Returns the ids that occur ``min_count`` times or more, sorted, int64."""
        self._count_pending()
        counts = _sum_weights(self._counts)
        return counts.filter(pl.col("weight") >= min_count)["id"].sort().to_numpy()

    def _count_pending(self) -> None:
        self._counts.append(_sum_weights(self._pending))
        self._pending = []
        if _num_rows(self._counts[1:]) > max(NUM_COUNTED, self._counts[0].height):
            self._counts = [_sum_weights(self._counts)]


def _num_rows(parts: list[pl.DataFrame]) -> int:
    return sum(part.height for part in parts)


def _sum_weights(parts: list[pl.DataFrame]) -> pl.DataFrame:
    """Returns each distinct ``id`` of all parts with the sum of its ``weight``."""
    empty = pl.DataFrame(schema={"id": pl.Int64, "weight": pl.Int64})
    return pl.concat([empty, *parts]).group_by("id").agg(pl.col("weight").sum())


class Vocabularies:
    """The raw ids of every field and their codes: 1 for the smallest id; 0 for missing, rare and unseen ids.

    Args:
        ids: raw ids of each field, sorted, int64.

    Example::

        >>> vocabularies = Vocabularies({"205": np.array([4945663, 2**40])})
        >>> vocabularies.encode("205", np.array([2**40, 7, 4945663]))
        array([2, 0, 1], dtype=uint8)
        >>> vocabularies.num_embeddings("205")
        3
    """

    def __init__(self, ids: Mapping[str, Array]) -> None:
        self.ids = dict(ids)

    def encode(self, field: str, ids: Array) -> Array:
        """Returns the codes of raw ids, in the smallest integer type that holds the codes of the field."""
        return (find(self.ids[field], ids) + 1).astype(id_type(self.num_embeddings(field)))

    def num_embeddings(self, field: str) -> int:
        """Returns the number of codes of a field."""
        return len(self.ids[field]) + 1

    @property
    def digest(self) -> str:
        """SHA-256 of all fields and ids; equal for two preparations only if every code means the same in both."""
        digest = hashlib.sha256()
        for field, ids in self.ids.items():
            digest.update(f"{field}:{len(ids)}:".encode() + ids.astype("<i8").tobytes())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Writes ``vocabularies.parquet``: one row per id, with its ``field``, ``id`` and ``code``."""
        columns = {
            "field": np.repeat(list(self.ids), [len(ids) for ids in self.ids.values()]),
            "id": np.concatenate(list(self.ids.values())),
            "code": np.concatenate([np.arange(1, len(ids) + 1) for ids in self.ids.values()]),
        }
        pl.DataFrame(columns).write_parquet(folder / VOCABULARIES_FILE)

    @classmethod
    def load(cls, folder: str | Path, fields: tuple[str, ...]) -> "Vocabularies":
        """Reads what `save` wrote. Raises `InputError` if the file does not exist."""
        file = Path(folder) / VOCABULARIES_FILE
        if not file.is_file():
            raise InputError(f"{file}: no such file")
        table = pl.read_parquet(file)
        return cls({field: table.filter(pl.col("field") == field)["id"].to_numpy() for field in fields})


def log_round(values: ArrayLike, resolution: float = 1.0) -> NDArray[np.int64]:
    """Returns ids of a numeric field, ``round(resolution * log2(1 + x))``: fine near 0, coarse for large values.

    TAFE discretises numeric features (eq. 13) "through a Log-round operation" that it does not define; this is our
    reading. The field's ``num_embeddings`` is the id of its largest value plus 1.

    Args:
        values: numbers ``x >= 0``, finite, of any shape.
        resolution: number of ids per doubling of ``1 + x``.

    Returns:
        Ids from 0, int64, of the same shape.

    Raises:
        InputError: if a value is negative, NaN or infinite, or ``resolution`` is not above 0.

    Example::

        >>> log_round([0, 1, 2, 3, 100, 1_000_000]).tolist()
        [0, 1, 2, 2, 7, 20]
        >>> log_round([0, 1, 2, 3], resolution=4).tolist()
        [0, 4, 6, 8]
    """
    check_at_least(0, resolution=resolution)
    if not resolution:
        raise InputError(f"`resolution` (={resolution}) must be above 0")
    array = as_array("values", values, np.float64)
    bad = ~(np.isfinite(array) & (array >= 0))
    if bad.any():
        position = int(bad.argmax())
        raise InputError(
            f"`values` (={shown(array.flat[position])} at position {position}, counted from 0) must be finite and at "
            "least 0"
        )
    ids = np.rint(resolution * np.log2(1 + array))
    if ids.size and ids.max() >= 2**63:
        raise InputError(f"`resolution` (={resolution}) must be small enough for ids of 64 bits")
    return ids.astype(np.int64)
