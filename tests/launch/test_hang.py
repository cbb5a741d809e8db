"""Ranks of which one gets stuck: all end, and leave their stacks."""

import os
import subprocess
import sys

import pytest

from tests import VERIFY
from tests.jobs import funnel
from tests.launch import hanging, job

TIMEOUT = 12  # seconds: any step takes far less


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return funnel.prepare(tmp_path_factory.mktemp("data") / "tiny")


def run(fault, data, output):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    sharded = "training.table.optimizer=rowwise_adagrad"
    arguments = [*job.arguments(data, output), "--timeout", str(TIMEOUT), sharded]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "2"}
    command = [*torchrun, hanging.__file__, fault, "train", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=job.SECONDS, env=environment, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("fault", hanging.FAULTS if VERIFY else ["step"])
def test_every_rank_ends_and_leaves_its_stack(data, tmp_path, fault):
    done = run(fault, data, tmp_path)
    stuck = hanging.FAULTS[fault][3]
    assert done.returncode == 1
    for rank in range(2):
        file = tmp_path / job.NAME / f"stack_rank_{rank}.txt"
        if rank == stuck and fault == "stopped":
            continue  # a stopped process runs nothing, and torchrun kills it
        text = file.read_text()
        assert (f"in {hanging.FAULTS[fault][4].__name__}" in text) == (rank == stuck), text
        assert "in train_model" in text
        if not (rank == stuck and fault == "lock"):  # which can only be ended from outside
            assert f"has not gone on for {TIMEOUT} s\n" in text
            assert f"error: rank {rank} has not gone on for {TIMEOUT} s; its stack is in {file}\n" in done.stderr


def test_a_run_that_ends_leaves_no_stack(data, tmp_path):
    command = [sys.executable, "-m", "torchrec_mtl", "train", *job.arguments(data, tmp_path), "--timeout", str(TIMEOUT)]
    subprocess.run(command, check=True, timeout=job.SECONDS)
    assert not list(tmp_path.glob("**/stack_rank_*"))
