"""From raw columns to ids of embedding tables: vocabularies of raw ids, and log-rounded numbers (TAFE eq. 13)."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from torchrec_mtl.data.id_columns import id_type
from torchrec_mtl.data.lists import Array
from torchrec_mtl.errors import InputError

FILE_NAME = "vocabularies.parquet"
NUM_PENDING = 2**18  # ids that wait to be counted
NUM_COUNTED = 2**22  # counts that wait to be added up


def find(known: Array, ids: Array) -> Array:
    """The places of ``ids`` in ``known``, which is sorted; -1 where they are not.

    Example::

        >>> find(np.array([3, 5]), np.array([5, 4, 3])).tolist()
        [1, -1, 0]
    """
    if not len(known):
        return np.full(len(ids), -1)
    places = np.minimum(known.searchsorted(ids), len(known) - 1)
    return np.where(known[places] == ids, places, -1)


class ValueCounts:
    """How often each raw id of a field occurs, added up part by part."""

    def __init__(self) -> None:
        self._pending: list[pl.DataFrame] = []
        self._counts: list[pl.DataFrame] = []

    def add(self, ids: Array, weights: Array | None = None) -> None:
        """``ids``, int64; each occurs once, or as often as its weight says."""
        weights = np.ones(len(ids), np.int64) if weights is None else weights
        self._pending.append(pl.DataFrame({"id": ids, "weight": weights}))
        if _height(self._pending) > NUM_PENDING:
            self._count()

    def at_least(self, min_count: int) -> Array:
        """The ids that occur that often, sorted, int64."""
        self._count()
        counts = _added_up(self._counts)
        return counts.filter(pl.col("weight") >= min_count)["id"].sort().to_numpy()

    def _count(self) -> None:
        self._counts.append(_added_up(self._pending))
        self._pending = []
        if _height(self._counts[1:]) > max(NUM_COUNTED, self._counts[0].height):
            self._counts = [_added_up(self._counts)]


def _height(parts: list[pl.DataFrame]) -> int:
    return sum(part.height for part in parts)


def _added_up(parts: list[pl.DataFrame]) -> pl.DataFrame:
    """The distinct ``id`` of all parts and the sum of the ``weight`` of each."""
    empty = pl.DataFrame(schema={"id": pl.Int64, "weight": pl.Int64})
    return pl.concat([empty, *parts]).group_by("id").agg(pl.col("weight").sum())


class Vocabularies:
    """The ids of every field, sorted: code 1 is the smallest; 0 stands for missing, rare and unseen ones.

    Args:
        ids: field -> its raw ids, sorted, int64.

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
        """Codes of raw ids, in the smallest type that holds the field's."""
        return (find(self.ids[field], ids) + 1).astype(id_type(self.num_embeddings(field)))

    def num_embeddings(self, field: str) -> int:
        return len(self.ids[field]) + 1

    @property
    def digest(self) -> str:
        """SHA-256 of all fields and ids: that of another preparation differs unless every code means the same."""
        digest = hashlib.sha256()
        for field, ids in self.ids.items():
            digest.update(f"{field}:{len(ids)}:".encode() + ids.astype("<i8").tobytes())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """One row an id: ``field``, ``id`` and ``code``."""
        columns = {
            "field": np.repeat(list(self.ids), [len(ids) for ids in self.ids.values()]),
            "id": np.concatenate(list(self.ids.values())),
            "code": np.concatenate([np.arange(1, len(ids) + 1) for ids in self.ids.values()]),
        }
        pl.DataFrame(columns).write_parquet(folder / FILE_NAME)

    @classmethod
    def load(cls, folder: str | Path, fields: tuple[str, ...]) -> "Vocabularies":
        """What `save` wrote; InputError if there is no such file."""
        file = Path(folder) / FILE_NAME
        if not file.is_file():
            raise InputError(f"{file}: no such file")
        table = pl.read_parquet(file)
        return cls({field: table.filter(pl.col("field") == field)["id"].to_numpy() for field in fields})


def log_round(values: ArrayLike, resolution: float = 1.0) -> NDArray[np.int64]:
    """Ids of a numeric field, ``round(resolution * log2(1 + x))``: fine near 0, coarse far from it.

    TAFE discretises numeric features (eq. 13) "through a Log-round operation" that it does not define; this
    is our reading. The field's ``num_embeddings`` is the id of its largest value plus 1.

    Args:
        values: x >= 0, finite; any shape.
        resolution: ids a doubling of ``1 + x``.

    Returns:
        int64 ids of the same shape, from 0.

    Raises:
        InputError: on a negative, NaN or infinite value, or a ``resolution`` not above 0.

    Example::

        >>> log_round([0, 1, 2, 3, 100, 1_000_000]).tolist()
        [0, 1, 2, 2, 7, 20]
        >>> log_round([0, 1, 2, 3], resolution=4).tolist()
        [0, 4, 6, 8]
    """
    if not resolution > 0:
        raise InputError(f"`resolution` (={resolution}) must be above 0")
    array = np.asarray(values, np.float64)
    bad = ~(np.isfinite(array) & (array >= 0))
    if bad.any():
        position = int(bad.argmax())
        raise InputError(
            f"`values` (={array.flat[position]} at position {position}, counted from 0) must be finite and at least 0"
        )
    return np.rint(resolution * np.log2(1 + array)).astype(np.int64)
