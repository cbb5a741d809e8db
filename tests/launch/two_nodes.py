"""Two nodes of two processes, each node in a network namespace with an address of its own; then the cable is pulled.

``python -m tests.launch.two_nodes``, as root on Linux with iproute2; about two minutes on two cores. It makes two
namespaces and removes them, and touches no other network.

1. Both train and write checkpoints.
2. The link is down for five seconds: they wait, and go on.
3. The link is down for good and one node with it. The other is asked to stop, as a scheduler does that sees this.
4. Link and node are back, and the same command resumes from the last checkpoint to the end.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.jobs import funnel
from tests.launch import job

NODES = [f"node{i}-{os.getpid()}" for i in range(2)]
ADDRESSES = ["192.0.2.1", "192.0.2.2"]  # of a network kept for documentation


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def reason_to_skip() -> str | None:
    """Why this machine or user may not do it."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "it takes Linux and iproute2"
    try:
        ip("netns", "add", NODES[0])
        ip("netns", "delete", NODES[0])
    except subprocess.CalledProcessError as error:
        return f"no network namespace can be made: {error.stderr.strip()}"
    return None


@contextmanager
def network() -> Iterator[None]:
    """Two namespaces joined by a cable, at whose ends both have an ``eth0``."""
    try:
        for node in NODES:
            ip("netns", "add", node)
        ip("-n", NODES[0], "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", NODES[1])
        for node, address in zip(NODES, ADDRESSES, strict=True):
            ip("-n", node, "address", "add", f"{address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                ip("-n", node, "link", "set", link, "up")
        yield
    finally:
        for node in NODES:
            subprocess.run(["ip", "netns", "delete", node], check=False, capture_output=True)


def start(data: Path, output: Path, logs: list[Path]) -> list[subprocess.Popen[bytes]]:
    """An agent on each node; they meet on the first."""
    agents = []
    for i, (node, address) in enumerate(zip(NODES, ADDRESSES, strict=True)):
        options = ["--nnodes", "2", "--nproc_per_node", "2", "--rdzv_backend", "c10d", "--rdzv_id", "job"]
        options += ["--rdzv_endpoint", f"{ADDRESSES[0]}:29500", "--local_addr", address]
        options += ["--rdzv_conf", f"is_host={int(i == 0)}"]  # the machine's name has neither address
        agent = job.torchrun(
            *options,
            data=data,
            output=output,
            log=logs[i],
            through=["ip", "netns", "exec", node],
            GLOO_SOCKET_IFNAME="eth0",
            TORCH_ELASTIC_SHUTDOWN_TIMEOUT="5",
        )
        agents.append(agent)
    return agents


def told(text: str, began: float) -> None:
    print(f"{time.monotonic() - began:5.0f} s  {text}", flush=True)


def run(folder: Path) -> None:
    """The whole of it.

    Raises:
        AssertionError: if the job does not go on as it should.
        TimeoutError: if something does not come.
    """
    began = time.monotonic()
    data, output = funnel.prepare(folder / "data"), folder / "runs"
    logs = [folder / f"{address}.log" for address in ADDRESSES]
    with network():
        agents = start(data, output, logs)
        try:
            job.wait_for(lambda: job.checkpoint_steps(output), "a checkpoint", logs[0])
            assert set(job.workers(output)) == {0, 1, 2, 3}
            told(f"2x2 processes train; checkpoint of step {job.checkpoint_steps(output)[-1]}", began)

            ip("-n", NODES[1], "link", "set", "eth0", "down")
            time.sleep(1)
            at_cut = job.checkpoint_steps(output)[-1]
            time.sleep(4)
            assert job.checkpoint_steps(output)[-1] == at_cut
            told(f"the link is down: they wait after step {at_cut}", began)
            ip("-n", NODES[1], "link", "set", "eth0", "up")
            job.wait_for(lambda: job.checkpoint_steps(output)[-1] > at_cut, "a checkpoint after the cut", logs[0])
            told(f"the link is up: they go on; checkpoint of step {job.checkpoint_steps(output)[-1]}", began)

            ip("-n", NODES[1], "link", "set", "eth0", "down")
            job.kill_node(agents[1])
            agents[0].terminate()
            assert agents[0].wait(job.SECONDS) != 0
            last = job.checkpoint_steps(output)[-1]
            told(f"one node is lost, the other stopped; the last checkpoint is of step {last}", began)

            ip("-n", NODES[1], "link", "set", "eth0", "up")
            agents = start(data, output, logs)
            assert [agent.wait(job.SECONDS) for agent in agents] == [0, 0], logs[0].read_text()[-5000:]
        finally:
            for agent in agents:
                if agent.poll() is None:
                    job.kill_node(agent)
        assert re.findall(r"resumes from \S*/step_(\d+)", logs[0].read_text()) == [f"{last:09d}"]
        history = (output / job.NAME / job.MODEL / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(row)["step"] for row in history if json.loads(row)["split"] == "train"]
        assert steps == [24 * (epoch + 1) for epoch in range(job.EPOCHS)]
        told(f"the same command went on from step {last} to the end, step {steps[-1]}", began)


if __name__ == "__main__":
    if reason := reason_to_skip():
        print(f"skipped: {reason}")
        sys.exit()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder))
