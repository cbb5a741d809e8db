"""A small training job as torchrun runs it, with processes that can be found and killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

NAME, MODEL = "run", "single_task"
EPOCHS = 3  # of 24 steps
SETTINGS = ["training.batch_size=64", f"training.max_epochs={EPOCHS}", "training.patience=100", "embedding_dim=4"]
SETTINGS += ["training.evaluations_per_epoch=1", "training.checkpoint.interval=8"]
SETTINGS += ["model_args.layer_sizes=[]"]  # linear: no unit is so near 0 that rounding decides what it learns
SECONDS = 150  # for anything to happen: far more than it takes


def arguments(data: Path, output: Path) -> list[str]:
    """Of the training job."""
    options = ["--dataset", str(data), "--output", str(output), "--name", NAME, "--models", MODEL]
    return [*options, *SETTINGS]


def torchrun(
    *options: str, data: Path, output: Path, log: Path, through: Sequence[str] = (), **environment: str
) -> subprocess.Popen[bytes]:
    """An agent with its workers, started ``through`` another command; what they say is added to ``log``."""
    command = [*through, sys.executable, "-m", "torch.distributed.run", *options, "-m", "torchrec_mtl", "train"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **environment}
    with log.open("ab") as stream:
        return subprocess.Popen([*command, *arguments(data, output)], stdout=stream, stderr=stream, env=env)


def workers(output: Path) -> dict[int, int]:
    """Rank -> process id of the job that writes to ``output``."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
            environment = dict(pair.split(b"=", 1) for pair in (process / "environ").read_bytes().split(b"\0") if pair)
        except (OSError, ValueError):  # it ended meanwhile
            continue
        if str(output).encode() in command and b"RANK" in environment:
            found[int(environment[b"RANK"])] = int(process.name)
    return found


def checkpoint_steps(output: Path) -> list[int]:
    """Of the checkpoints that are there, oldest first."""
    found = (output / NAME / MODEL / "checkpoints").glob("step_?????????")
    return sorted(int(path.name.removeprefix("step_")) for path in found)


def wait_for(condition: Callable[[], object], what: str, log: Path) -> None:
    """Until it holds.

    Raises:
        TimeoutError: if it does not come to hold, with what the job said.
    """
    end = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come; the job said:\n{log.read_text()[-5000:]}")
        time.sleep(0.05)


def kill(process_id: int) -> None:
    """At once, as when memory runs out."""
    os.kill(process_id, signal.SIGKILL)


def kill_node(agent: subprocess.Popen[bytes]) -> None:
    """An agent and its workers, which are no process group of its own, as when a machine goes down."""
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    for process_id in (agent.pid, *map(int, children)):
        kill(process_id)
    agent.wait()


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]
