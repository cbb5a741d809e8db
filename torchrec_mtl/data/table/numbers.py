"""Fields of numbers: as quantile bins, log-rounded, or dense."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np
import polars as pl
import pyarrow as pa

from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.table.columns import Role
from torchrec_mtl.data.table.fields import MISSING, DeclaredField, Fitted, IdField
from torchrec_mtl.errors import check_at_least

_BITS = 16  # numbers are counted to so many significant bits


@dataclass(frozen=True)
class Bins(IdField):
    """A numeric field whose ids are quantile bins of the training rows: 0 for a missing value, then 1, 2, ... .

    A value below or above all training rows falls into the first or the last bin. Numbers are rounded to 16 significant
    bits, in training rows and later ones alike: an edge is off by at most one in 2^16.

    Args:
        name: name of the field. For the further arguments, see `Hashed`, which has them too.
        num_bins: largest number of bins; there are fewer where many rows have one value.

    Example::

        >>> field = Bins("price", 2)
        >>> fitted = field.fit(pl.DataFrame({"value": [1.0, 2.0, 9.0, 7.0], "count": [1, 1, 1, 1]}))
        >>> field.encode(pa.array([-5.0, 2.0, 7.0, None]), fitted).tolist()
        [1, 1, 2, 0]
    """

    num_bins: int = 32

    role: ClassVar[Role] = "number"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(2, **{f"num_bins` of field `{self.name}": self.num_bins})

    def to_count(self, values: pa.Array) -> pa.Array:
        return pa.array(_rounded(_floats(values.drop_null())))

    def fit(self, counts: pl.DataFrame) -> Fitted:
        edges = _quantiles(counts, np.arange(1, self.num_bins) / self.num_bins)
        largest = counts["value"].max()
        return {"edges": sorted({edge for edge in edges.tolist() if edge < largest})}

    def num_embeddings(self, fitted: Fitted) -> int:
        return len(fitted["edges"]) + 2

    def encode(self, values: pa.Array, fitted: Fitted) -> Array:
        numbers = _rounded(_floats(values))
        bins = np.searchsorted(np.array(fitted["edges"], np.float64), numbers, side="left") + 1
        return np.where(np.isnan(numbers), MISSING, bins)


@dataclass(frozen=True)
class LogRound(IdField):
    """A numeric field discretised by TAFE's log-round (eq. 13): fine near 0, coarse for large values.

    The number is ``round(resolution * log2(1 + |x|))``, as `torchrec_mtl.data.log_round` has it, with the sign of
    ``x``. Id 0 stands for a missing value, the ids from 1 for the numbers between the smallest and the largest of the
    training rows; a value beyond them has the id of the nearest.

    Args:
        name: name of the field. For the further arguments, see `Hashed`, which has them too.
        resolution: number of ids per doubling of ``1 + |x|``.

    Example::

        >>> field = LogRound("clicks")
        >>> fitted = field.fit(pl.DataFrame({"value": [0, 7], "count": [3, 1]}))
        >>> field.encode(pa.array([0, 1, 10**6, -3, None]), fitted).tolist()
        [1, 2, 8, 1, 0]
    """

    resolution: float = 1.0

    role: ClassVar[Role] = "number"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.resolution < np.inf:
            raise self._error("resolution", "must be above 0 and finite")

    def _rounds(self, values: pa.Array) -> Array:
        numbers = _floats(values)
        return np.rint(np.sign(numbers) * self.resolution * np.log2(1 + np.abs(numbers)))

    def to_count(self, values: pa.Array) -> pa.Array:
        return pa.array(self._rounds(values.drop_null()).astype(np.int64))

    def fit(self, counts: pl.DataFrame) -> Fitted:
        if not counts.height:
            return {"smallest": 0, "largest": 0, "resolution": self.resolution}
        values = counts["value"].to_numpy()
        return {"smallest": int(values.min()), "largest": int(values.max()), "resolution": self.resolution}

    def num_embeddings(self, fitted: Fitted) -> int:
        return int(fitted["largest"] - fitted["smallest"]) + 2

    def encode(self, values: pa.Array, fitted: Fitted) -> Array:
        rounds = np.clip(self._rounds(values), fitted["smallest"], fitted["largest"]) - fitted["smallest"] + 1
        return np.where(np.isnan(rounds), MISSING, np.nan_to_num(rounds)).astype(np.int64)


@dataclass(frozen=True)
class Dense(DeclaredField):
    """A number as dense columns: clipped, standardised by the training rows, 0 where it is missing.

    Args:
        name: name of the field, and of its dense column.
        column: raw column to read; the field's name by default.
        clip: quantiles of the training rows to which values are clipped.
        mark_missing: whether a second column ``<name>_missing`` is 1 where the value is missing, and 0 elsewhere.

    Example::

        >>> field = Dense("price", clip=(0, 1))
        >>> fitted = field.fit(pl.DataFrame({"value": [1.0, 3.0], "count": [1, 1]}))
        >>> field.encode(pa.array([3.0, None]), fitted).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    _: KW_ONLY
    clip: tuple[float, float] = (0.001, 0.999)
    mark_missing: bool = True

    role: ClassVar[Role] = "number"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (len(self.clip) == 2 and 0 <= self.clip[0] < self.clip[1] <= 1):
            raise self._error("clip", "must be two quantiles from 0 to 1, the smaller first")

    @property
    def dense(self) -> tuple[str, ...]:
        """The names of the dense columns."""
        return (self.name, f"{self.name}_missing") if self.mark_missing else (self.name,)

    def to_count(self, values: pa.Array) -> pa.Array:
        return pa.array(_rounded(_floats(values.drop_null())))

    def fit(self, counts: pl.DataFrame) -> Fitted:
        if not counts.height:
            return {"low": 0.0, "high": 0.0, "mean": 0.0, "std": 1.0}
        low, high = _quantiles(counts, np.array(self.clip)).tolist()
        values, weights = np.clip(counts["value"].to_numpy(), low, high), counts["count"].to_numpy()
        mean = float(np.average(values, weights=weights)) if low < high else low  # which rounding would miss
        largest = float(np.abs(values - mean).max()) or 1.0  # squares of what is left neither vanish nor overflow
        std = largest * float(np.sqrt(np.average(((values - mean) / largest) ** 2, weights=weights)))
        return {"low": low, "high": high, "mean": mean, "std": std if low < high else 1.0}

    def encode(self, values: pa.Array, fitted: Fitted) -> Array:
        """Returns dense values [N, 1 or 2], float32, of numbers [N]."""
        numbers = _floats(values)
        scaled = (np.clip(numbers, fitted["low"], fitted["high"]) - fitted["mean"]) / fitted["std"]
        missing = np.isnan(numbers)
        columns = [np.where(missing, 0, scaled), missing][: len(self.dense)]
        return np.stack(columns, axis=1).astype(np.float32)


def _floats(values: pa.Array) -> Array:
    """Numbers as float64, NaN for null."""
    return np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False))


def _rounded(numbers: Array) -> Array:
    """Numbers to 16 significant bits, so that counts of distinct values stay few, whoever counts them."""
    mantissa, exponent = np.frexp(numbers)
    with np.errstate(over="ignore"):  # the largest numbers are rounded up to infinity
        rounded = np.ldexp(np.rint(mantissa * 2**_BITS), exponent - _BITS)
    return np.clip(rounded, -np.finfo(float).max, np.finfo(float).max)


def _quantiles(counts: pl.DataFrame, shares: Array) -> Array:
    """The smallest values that at least these shares of the counted rows do not exceed."""
    sorted_counts = counts.sort("value")
    cumulative = sorted_counts["count"].cum_sum().to_numpy()
    if not len(cumulative):
        return np.empty(0)
    positions = np.searchsorted(cumulative, np.maximum(shares * cumulative[-1], 1e-9), side="left")
    return sorted_counts["value"].to_numpy().astype(np.float64)[np.minimum(positions, len(cumulative) - 1)]
