"""Log-rounded numbers (TAFE eq. 13): ids of numeric fields."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchrec_mtl.data.lists import as_array
from torchrec_mtl.errors import InputError, check_at_least, shown


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
