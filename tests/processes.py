"""Runs a function on several ranks of a group."""

import os
import tempfile
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _rank(
    rank: int,
    function: Callable[..., None],
    world_size: int,
    local_world_size: int,
    store: str,
    backend: str,
    arguments: tuple,
) -> None:
    torch.set_num_threads(1)
    os.environ.update(LOCAL_WORLD_SIZE=str(local_world_size), LOCAL_RANK=str(rank % local_world_size))
    file_store = dist.FileStore(store, world_size)
    dist.init_process_group(backend, store=file_store, rank=rank, world_size=world_size, timeout=timedelta(seconds=120))
    try:
        function(*arguments)
    finally:
        dist.destroy_process_group()


def run(
    function: Callable[..., None],
    world_size: int,
    *arguments: object,
    local_world_size: int = 0,
    backend: str = "gloo",
) -> None:
    """Calls ``function(*arguments)`` on every rank; raises if any of them does."""
    mp.set_forkserver_preload(["tests.support", "torchrec_mtl.training.fit"])  # once, not in every process
    with tempfile.TemporaryDirectory() as folder:
        of_rank = (
            function,
            world_size,
            local_world_size or world_size,
            os.path.join(folder, "store"),
            backend,
            arguments,
        )
        mp.start_processes(_rank, of_rank, nprocs=world_size, start_method="forkserver")
