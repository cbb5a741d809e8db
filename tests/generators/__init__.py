"""Generators of raw files, and what they share."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from torchrec_mtl.data.lists import Array

RAW_CSV: dict[str, Any] = {"include_header": False, "quote_style": "never"}


def scale_sizes(sizes: Iterable[int], share: float) -> list[int]:
    """Scales the numbers of ids of a published file to a file with a ``share`` of its rows; small numbers stay."""
    return [size if size < 100 else max(40, round(size * share)) for size in sizes]


def add_drift(probabilities: Array, drift: float, position: Array) -> Array:
    """Lowers the logits by ``drift`` in total as ``position`` goes from 0 to 1, without a change in the middle."""
    return 1 / (1 + (1 - probabilities) / probabilities * np.exp(drift * (position - 0.5)))
