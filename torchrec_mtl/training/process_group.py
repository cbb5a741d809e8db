"""The processes of a run: device and seeds of this one, the group of all, and what one rank does for all."""

import os
import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from torchrec_mtl.errors import InputError, TrainingError

T = TypeVar("T")

# torch 2.14 made it public, and warns of its old name
_set_timeout = getattr(dist, "set_timeout", None) or distributed_c10d._set_pg_timeout


def default_device() -> torch.device:
    """This rank's GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def set_seed(seed: int) -> None:
    """Seeds Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def process_group(device: torch.device, timeout: timedelta = timedelta(minutes=10)) -> Iterator[None]:
    """Sets up the default process group: torchrun's if it launched this process, otherwise a group of one.

    Args:
        device: device of this rank; the backend is NCCL on CUDA and gloo on the CPU.
        timeout: longest time that a rank waits for the others in one operation.

    Raises:
        InputError: if ``device`` is "cuda" without the number of the GPU.
    """
    if device.type == "cuda" and device.index is None:
        raise InputError(
            f"`device` (={str(device)!r}) must have a number, such as 'cuda:0'; `default_device` knows this rank's"
        )
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if dist.is_torchelastic_launched():
        store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
        if os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True":
            # torchrun keeps its store over restarts, and ranks of a dead attempt left their addresses there. A store of
            # the workers' own needs no prefix; it could not have one, as each agent counts restarts for itself.
            store = dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    size_of_node = {} if "LOCAL_WORLD_SIZE" in os.environ else {"LOCAL_WORLD_SIZE": str(dist.get_world_size())}
    os.environ.update(size_of_node)  # TorchRec warns without
    try:
        yield
    finally:
        dist.destroy_process_group()
        for name in size_of_node:
            del os.environ[name]


def _timeout(group: Any) -> timedelta:
    found: timedelta = group._get_backend(group._device_types[0]).options._timeout
    return found


def share_timeout() -> None:
    """Lets a rank wait as long in every group as in the default one: TorchRec makes groups of nodes with torch's own.

    Example::

        >>> with process_group(torch.device("cpu"), timedelta(seconds=5)):
        ...     share_timeout()
    """
    for group in distributed_c10d._world.pg_map:
        _set_timeout(_timeout(dist.group.WORLD), group)


def gloo_group() -> dist.ProcessGroup:
    """A gloo group of all ranks, in which a rank waits as long as in the default group; torch's default is 30 minutes.

    Example::

        >>> with process_group(torch.device("cpu"), timedelta(seconds=5)):
        ...     group = gloo_group()
        ...     dist.destroy_process_group(group)
    """
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=_timeout(dist.group.WORLD))
    return group


def on_first_rank(function: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Calls ``function`` on the first rank, and returns its result, or raises its error, on every rank.

    Without this, a rank that fails would leave the others waiting.

    Args:
        function: function without collectives.
        group: group of all ranks; the default group by default.

    Raises:
        InputError: as the function does.
        TrainingError: as the function does; or for any other error of it.

    Example::

        >>> with process_group(torch.device("cpu")):
        ...     on_first_rank(lambda: "one answer")
        'one answer'
    """
    outcome: list[Any] = [_outcome(function) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(outcome, group=group)
    result, error = outcome[0]
    if error is not None:
        raise error
    of_first: T = result
    return of_first


def on_every_rank(function: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Calls ``function`` on every rank, and returns this rank's result; if any rank fails, all raise the first's error.

    Without this, a rank that fails would leave the others waiting.

    Args:
        function: function without collectives.
        group: group of all ranks; the default group by default.

    Raises:
        InputError: as the function does on a rank.
        TrainingError: as the function does on a rank; or for any other error of it.

    Example::

        >>> with process_group(torch.device("cpu")):
        ...     on_every_rank(dist.get_rank)
        0
    """
    result, error = _outcome(function)
    errors: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error, group=group)
    for first in errors:
        if first is not None:
            raise first
    own: T = result  # type: ignore[assignment]  # there is no error
    return own


def _outcome(function: Callable[[], T]) -> tuple[T | None, InputError | TrainingError | None]:
    """The result of ``function``, or its error as one that all ranks can raise."""
    try:
        return function(), None
    except (InputError, TrainingError) as error:
        return None, error
    except Exception as error:
        traceback.print_exc()
        return None, TrainingError(f"rank {dist.get_rank()} failed with {type(error).__name__}: {error}")
