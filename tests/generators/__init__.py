"""What the generators of raw files share."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from torchrec_mtl.data.lists import Array

RAW_CSV: dict[str, Any] = {"include_header": False, "quote_style": "never"}


def scaled(sizes: Iterable[int], share: float) -> list[int]:
    """The numbers of a true file's ids for a file of a ``share`` of its rows; small ones stay."""
    return [size if size < 100 else max(40, round(size * share)) for size in sizes]


def drifted(probabilities: Array, drift: float, position: Array) -> Array:
    """The logits fall by ``drift`` in all as ``position`` goes from 0 to 1, and are as they were in the middle."""
    return 1 / (1 + (1 - probabilities) / probabilities * np.exp(drift * (position - 0.5)))
