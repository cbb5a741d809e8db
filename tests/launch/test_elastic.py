"""Whole jobs whose processes are killed: they go on from the last checkpoint, and end as if nothing had been."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from torchx.runner import get_runner
from torchx.specs import AppState

from tests.jobs import funnel
from tests.launch import job
from torchrec_mtl.__main__ import main


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return funnel.prepare(tmp_path_factory.mktemp("data") / "tiny")


def metrics(output):
    """Every metric of the training's history and the test split, by what it is of."""
    results = json.loads((output / job.NAME / "results.json").read_text())
    history = (output / job.NAME / job.MODEL / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in (*results, *map(json.loads, history)) if row["metric"] != "samples_per_second"]
    keyed = {tuple(v for k, v in row.items() if k != "value"): row["value"] for row in rows}
    assert len(keyed) == len(rows)  # no step is there twice
    return keyed


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """The metrics of a run of one process that nothing befell."""
    output = tmp_path_factory.mktemp("undisturbed")
    assert main(["train", *job.arguments(data, output)]) == 0
    return metrics(output)


def assert_alike(found, expected):
    """To rounding, which may swap two rows' places in an AUC of few rows."""
    assert found.keys() == expected.keys()
    for key, value in found.items():
        within = 2e-3 if {"auc", "gauc"} & set(key) else 1e-5
        assert value == pytest.approx(expected[key], abs=within), key


def resumed_steps(log):
    """The steps of the checkpoints that were gone on from."""
    return [int(step) for step in re.findall(r"resumes from \S*/step_(\d+)", log)]


@pytest.mark.verify
def test_a_killed_worker_of_a_torchx_job_comes_back(data, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # for torchrun
    output, log = tmp_path / "runs", tmp_path / "log"
    options = ["-j", "1x2", "--max_restarts", "2", "--dataset", str(data), "--output", str(output)]
    options += ["--name", job.NAME, "--models", job.MODEL, *job.SETTINGS]
    with get_runner() as runner:
        handle = runner.run_component("mtl.train", options, "local_cwd", {"log_dir": str(tmp_path / "logs")})
        log = next(tmp_path.glob("logs/**/combined.log"))
        job.wait_for(lambda: job.checkpoint_steps(output), "a checkpoint", log)
        job.kill(job.workers(output)[1])
        assert runner.wait(handle, wait_interval=0.2).state == AppState.SUCCEEDED
    assert len(resumed_steps(log.read_text())) == 1
    assert_alike(metrics(output), undisturbed)


@pytest.mark.verify
def test_fewer_nodes_go_on_and_a_stopped_job_too(data, undisturbed, tmp_path):
    output, log = tmp_path / "runs", tmp_path / "log"
    options = ["--nnodes", "1:2", "--nproc_per_node", "1", "--max_restarts", "2", "--rdzv_backend", "c10d"]
    options += ["--rdzv_endpoint", f"localhost:{job.free_port()}", "--rdzv_id", "job"]
    options += ["--rdzv_conf", ""]
    agents = []
    for is_host in (1, 0):  # of the store in which the nodes meet, without which none goes on
        options[-1] = f"last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=3,is_host={is_host}"
        agents.append(job.torchrun(*options, data=data, output=output, log=log))
    first, second = agents
    job.wait_for(lambda: job.checkpoint_steps(output), "a checkpoint of two nodes", log)
    assert set(job.workers(output)) == {0, 1}
    job.kill_node(second)
    job.wait_for(lambda: resumed_steps(log.read_text()), "the node that is left", log)
    job.wait_for(lambda: job.checkpoint_steps(output)[-1] > resumed_steps(log.read_text())[0], "a checkpoint", log)
    assert set(job.workers(output)) == {0}

    first.send_signal(signal.SIGTERM)
    first.wait(job.SECONDS)
    last = job.checkpoint_steps(output)[-1]
    assert f"asked to stop, after step {last}" in log.read_text()
    again = job.torchrun("--standalone", "--nproc_per_node", "1", data=data, output=output, log=log)
    assert again.wait(job.SECONDS) == 0
    assert resumed_steps(log.read_text())[-1] == last
    assert_alike(metrics(output), undisturbed)
