"""Derivatives of a function in float64, by differences."""

from collections.abc import Callable

import numpy as np

from tests.oracles.common import Array


def derivatives(function: Callable[[Array], Array], at: Array, step: float = 1e-6) -> Array:
    """Central differences of ``function``, from ``[*shape]`` to ``[T]``, at a point: ``[T, *shape]``."""
    columns = []
    for place in np.ndindex(at.shape):
        moved = np.zeros_like(at)
        moved[place] = step
        columns.append((function(at + moved) - function(at - moved)) / (2 * step))
    return np.stack(columns, axis=-1).reshape(-1, *at.shape)
