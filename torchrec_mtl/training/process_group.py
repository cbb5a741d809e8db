"""The processes of a run: device and seeds of this one, the group of all, and what one rank does for all."""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from torchrec_mtl.errors import InputError

T = TypeVar("T")


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
    """
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
    try:
        yield
    finally:
        dist.destroy_process_group()


def on_first_rank(function: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Calls ``function`` on the first rank, and returns its result, or raises its `InputError`, on every rank.

    Without this, a rank that fails would leave the others waiting.

    Example::

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
