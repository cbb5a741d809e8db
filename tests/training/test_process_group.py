"""Ranks that meet under torchrun."""

import multiprocessing
import os
import socket
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

import torchrec_mtl
from tests import processes
from tests.training.test_distributed import CPU, build_on_shared_tables
from torchrec_mtl.errors import InputError, TrainingError
from torchrec_mtl.training.config import TableConfig, TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.process_group import (
    _set_timeout,
    gloo_group,
    on_every_rank,
    on_first_rank,
    process_group,
)


def _meet(rank: int, port: int, restarts: int) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="meeting")
    os.environ.update(TORCHELASTIC_USE_AGENT_STORE="False", TORCHELASTIC_RESTART_COUNT=str(restarts))
    with process_group(torch.device("cpu")):
        total = torch.ones(1)
        dist.all_reduce(total)
    assert total.item() == 2


@pytest.mark.slow
def test_agents_that_count_restarts_differently_meet():
    """One node's worker has failed, the other's has not: each agent counts its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    ranks = [context.Process(target=_meet, args=(rank, port, 1 - rank)) for rank in (0, 1)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join(60)
    codes = [each.exitcode for each in ranks]
    for each in ranks:
        each.kill()
    assert codes == [0, 0]


def test_a_gpu_has_a_number():
    with (
        pytest.raises(InputError, match="`device` \\(='cuda'\\) must have a number, such as 'cuda:0'"),
        process_group(torch.device("cuda")),
    ):
        pass


def test_all_groups_wait_as_long_as_the_default_one():
    with process_group(torch.device("cpu"), timedelta(seconds=77)):
        group = gloo_group()
        assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=77)
        dist.destroy_process_group(group)
    makers = [path for path in Path(torchrec_mtl.__file__).parent.rglob("*.py") if "dist.new_group" in path.read_text()]
    assert [path.name for path in makers] == ["process_group.py"]


def _one_rank_fails(failing: int) -> None:
    def fail(error: Exception) -> str:
        if dist.get_rank() == failing:
            raise error
        return "read"

    for error, kind, sentence in (
        (InputError("`rows` (=0) must be some"), InputError, r"^`rows` \(=0\) must be some$"),
        (OSError(5, "Input/output error", "/data"), TrainingError, rf"^rank {failing} failed with OSError: .*'/data'$"),
        (MemoryError("of tables"), TrainingError, rf"^rank {failing} failed with MemoryError: of tables$"),
    ):
        for together in (on_every_rank, on_first_rank):
            if together is on_every_rank or failing == 0:
                with pytest.raises(kind, match=sentence):
                    together(lambda error=error: fail(error))
    assert on_every_rank(dist.get_rank) == dist.get_rank()


@pytest.mark.parametrize("failing", [0, 1])
def test_the_error_of_one_rank_is_raised_on_all(failing):
    processes.run(_one_rank_fails, 2, failing)


def groups_of_nodes():
    _set_timeout(timedelta(seconds=77), dist.group.WORLD)
    config = TrainingConfig(table=TableConfig("sgd", 0.05, "table_row_wise"))
    distribute(build_on_shared_tables(), config, CPU)
    dist.barrier(gloo_group())  # else one rank may leave while the other still connects
    groups = distributed_c10d._world.pg_map
    assert len(groups) > 2  # those of a node, and across nodes, that TorchRec made
    assert {group._get_backend(CPU).options._timeout for group in groups} == {timedelta(seconds=77)}


def test_every_group_waits_as_long_as_the_default_one():
    """Two ranks as two nodes."""
    processes.run(groups_of_nodes, 2, local_world_size=1)
