"""Whose row a new id gets: the worth of ids, and the rows of the least worthy."""

from typing import Literal, get_args

import torch
from torch import Tensor

Eviction = Literal["lfu", "lru", "distance_lfu", "none"]
EVICTIONS = get_args(Eviction)


def worth(eviction: Eviction, batch: int, decay: float, counts: Tensor | None, last_seen: Tensor | None) -> Tensor:
    """What ids are worth, float64 ``[N]`` of at least 0.

    Args:
        eviction: see `RowAssignment`.
        batch: number of the present batch.
        decay: exponent of ``"distance_lfu"``.
        counts: number of times that each id was seen; only ``"lru"`` does without.
        last_seen: number of the last batch that each id was in, for ``"lru"`` and ``"distance_lfu"``.

    Example::

        >>> worth("distance_lfu", 9, 1.0, torch.tensor([6, 6]), torch.tensor([9, 7]))
        tensor([6., 2.], dtype=torch.float64)
    """
    if eviction == "lru":
        assert last_seen is not None
        return last_seen.double()
    assert counts is not None
    if eviction != "distance_lfu":
        return counts.double()
    assert last_seen is not None
    return counts / (batch - last_seen + 1).double() ** decay


def least_worthy(worths: Tensor, number: int) -> Tensor:
    """The columns ``[K, number]`` of the smallest worths ``[K, M]`` of each row, rising; of equals the first column.

    Worths are compared to a relative difference of about ``M / 2^52``.

    Example::

        >>> least_worthy(torch.tensor([[3.0, 1.0, 2.0, 1.0]], dtype=torch.float64), 3)
        tensor([[1, 3, 2]])
    """
    # as integers, doubles keep their order; the last bits make room for the column, so that no two are equal
    bits, columns = (worths.shape[1] - 1).bit_length(), torch.arange(worths.shape[1], device=worths.device)
    keys = (worths.view(torch.int64) & -(1 << bits)) | columns
    return keys.topk(number, largest=False).indices


def best_by_bucket(worths: Tensor, buckets: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``limit`` worthiest of each bucket; of equals the first.

    Args:
        worths: worth of each id ``[N]``.
        buckets: bucket of each id ``[N]``.
        limit: largest number in a bucket.

    Returns:
        The position of each among the ids, its bucket, and its place in the bucket, from 0 ``[n]``.

    Example::

        >>> best_by_bucket(torch.tensor([1.0, 3.0, 2.0, 5.0]), torch.tensor([0, 1, 1, 1]), 2)
        (tensor([0, 3, 1]), tensor([0, 1, 1]), tensor([0, 0, 1]))
    """
    order = worths.argsort(descending=True, stable=True)
    buckets, by_bucket = buckets[order].sort(stable=True)
    order = order[by_bucket]
    place = torch.arange(len(order), device=order.device) - torch.searchsorted(buckets, buckets)
    within = place < limit
    return order[within], buckets[within], place[within]
