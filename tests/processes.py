"""Runs a function or a program on several ranks, in forks of a process that has imported torch and TorchRec."""

import os
import runpy
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

PRELOADED = [
    "tests.support",
    "torchrec_mtl.training.loop",
    "torch.distributed.optim",
]  # imported once for all


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
    """Calls ``function(*arguments)`` on every rank; raises if any rank does."""
    mp.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        rank_arguments = (
            function,
            world_size,
            local_world_size or world_size,
            os.path.join(folder, "store"),
            backend,
            arguments,
        )
        mp.start_processes(_rank, rank_arguments, nprocs=world_size, start_method="forkserver")


def _program(program: str, arguments: tuple[str, ...], output: str) -> None:
    log = os.open(output, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)  # as torchrun does
    sys.argv[1:] = arguments  # runpy sets the first, the program
    if program.endswith(".py"):
        sys.path.insert(0, str(Path(program).parent))
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def run_program(program: str | Path, *arguments: str, ranks: int = 0) -> str:
    """Runs a file or module as ``python`` does, or on ``ranks`` processes as ``torchrun`` does; returns its output.

    Raises:
        RuntimeError: if the exit status is not 0, with the end of the output.
    """
    mp.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "output.txt")
        of_process = (str(program), arguments, str(output))
        try:
            if ranks:
                config = LaunchConfig(
                    1, 1, ranks, run_id=folder, rdzv_backend="c10d", start_method="forkserver", max_restarts=0
                )
                config.rdzv_endpoint = "localhost:0"
                elastic_launch(config, _program)(*of_process)
            else:
                mp.start_processes(_without_ranks, of_process, nprocs=1, start_method="forkserver")
        except Exception as error:
            raise RuntimeError(f"{program} failed; it said:\n{output.read_text()[-3000:]}") from error
        return output.read_text()


def _without_ranks(_: int, *of_process: object) -> None:
    _program(*of_process)
