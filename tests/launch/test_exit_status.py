"""The status of a job whose process is killed by SIGKILL, as when memory runs out: docs/at_3_am.md has the table."""

import os
import signal
import subprocess
import sys

import pytest

from tests.jobs import funnel
from tests.launch import job


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return funnel.prepare(tmp_path_factory.mktemp("data") / "tiny")


def test_without_torchrun_it_is_minus_9_and_137_in_a_shell(data, tmp_path):
    train = [sys.executable, "-m", "torchrec_mtl", "train", *job.arguments(data, tmp_path / "runs")]
    shell = ["sh", "-c", '"$@" & echo $! > "$0"; wait $!', str(tmp_path / "pid"), *train]
    with (tmp_path / "log").open("wb") as log:
        started = subprocess.Popen(shell, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        job.wait_for(lambda: job.checkpoint_steps(tmp_path / "runs"), "a checkpoint", tmp_path / "log")
        job.kill(int((tmp_path / "pid").read_text()))
        assert started.wait(job.SECONDS) == 137
        again = subprocess.Popen(train, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        job.wait_for(lambda: "resumes from" in (tmp_path / "log").read_text(), "a resumed run", tmp_path / "log")
        job.kill(again.pid)
        assert again.wait(job.SECONDS) == -signal.SIGKILL


@pytest.mark.verify
def test_torchrun_ends_with_1_and_names_the_signal(data, tmp_path):
    output, log = tmp_path / "runs", tmp_path / "log"
    agent = job.torchrun("--standalone", "--nproc_per_node", "2", data=data, output=output, log=log)
    job.wait_for(lambda: job.checkpoint_steps(output), "a checkpoint", log)
    job.kill(job.workers(output)[1])
    assert agent.wait(job.SECONDS) == 1
    assert "exitcode  : -9" in log.read_text()
    assert "Signal 9 (SIGKILL) received by PID" in log.read_text()
