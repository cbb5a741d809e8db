"""Raw columns to ids."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchrec_mtl.errors import InputError


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
