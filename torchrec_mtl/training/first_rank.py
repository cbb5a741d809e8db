"""What one rank does for all."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from torchrec_mtl.errors import InputError

T = TypeVar("T")


def on_first_rank(function: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """What ``function`` returns on the first rank, or the `InputError` that it raises, on every rank.

    Without this a rank that fails leaves the others waiting.

    Example::

        >>> from torchrec_mtl.training.distributed import process_group
        >>> import torch
        >>> with process_group(torch.device("cpu")):
        ...     on_first_rank(lambda: "one answer")
        'one answer'
    """
    outcome: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            outcome = [function()]
        except InputError as error:
            outcome = [error]
    dist.broadcast_object_list(outcome, group=group)
    if isinstance(outcome[0], InputError):
        raise outcome[0]
    result: T = outcome[0]
    return result
