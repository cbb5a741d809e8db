"""A bijective hash of ids, so that ids which are close or share a factor are spread evenly, and its inverse."""

from typing import Any

from torch import Tensor

ANY_ID = 2**63 - 1
_FACTORS = (0x5851F42D4C957F2D, 0x2545F4914F6CDD1D)
_INVERSES = tuple(pow(factor, -1, 2**63) for factor in _FACTORS)


def _mix(ids: Any) -> Any:
    """A bijection of ``0 .. 2^63 - 1``: xors with own high bits, and products with odd numbers modulo 2^63."""
    first, second = _FACTORS
    ids = ids ^ (ids >> 32)
    ids = (ids * first) & ANY_ID
    ids = ids ^ (ids >> 29)
    ids = (ids * second) & ANY_ID
    return ids ^ (ids >> 32)


_FIX = _mix(ANY_ID) ^ ANY_ID  # so that ANY_ID is hashed to itself


def hash_ids(ids: Tensor) -> Tensor:
    """Maps ids ``0 .. 2^63 - 2`` to these numbers, each to another one; what is no id becomes `ANY_ID`.

    Args:
        ids: integers of any shape and type. Negative ones and 2^63 - 1 are no ids.

    Example::

        >>> import torch
        >>> ids = torch.tensor([0, 1, 2**63 - 2])
        >>> hash_ids(ids) % 32, unhash_ids(hash_ids(ids)).equal(ids)
        (tensor([30,  1, 18]), True)
    """
    ids = ids.long()
    return (_mix(ids & ANY_ID) ^ _FIX).masked_fill(ids < 0, ANY_ID)


def unhash_ids(hashed: Tensor) -> Tensor:
    """The ids that `hash_ids` mapped to ``hashed``; `ANY_ID` stays."""
    first, second = _INVERSES
    ids = hashed ^ _FIX
    ids = ids ^ (ids >> 32)
    ids = (ids * second) & ANY_ID
    ids = ids ^ (ids >> 29) ^ (ids >> 58)
    ids = (ids * first) & ANY_ID
    return ids ^ (ids >> 32)
