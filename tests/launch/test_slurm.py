"""A real Slurm of two nodes on this machine: a job by ``torchx run -s slurm`` trains, and goes on after a kill."""

import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs import funnel
from tests.launch import job

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
REASONS = [] if os.environ.get("TORCHREC_MTL_SLURM") else ["TORCHREC_MTL_SLURM is not set; `make verify` sets it"]
REASONS += [f"{program} is not on the PATH" for program in PROGRAMS if shutil.which(program) is None]
pytestmark = pytest.mark.skipif(bool(REASONS), reason="; ".join(REASONS))

NODE = socket.gethostname()  # of both nodes: the first must have a name at which the second finds it
CONFIGURATION = """\
ClusterName=two
SlurmctldHost={node}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
AccountingStorageType=accounting_storage/none
NodeName={node} NodeHostname={node} NodeAddr=127.0.0.1 Port={ports[1]} RealMemory=4096
NodeName={node}-2 NodeHostname={node} NodeAddr=127.0.0.1 Port={ports[2]} RealMemory=4096
PartitionName=debug Nodes=ALL Default=YES State=UP
"""


def says(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A controller and two nodes, to which Slurm's commands lead, without the accounting that ``sacct`` needs."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    ports = [job.free_port() for _ in range(3)]
    text = CONFIGURATION.format(node=NODE, user=getpass.getuser(), folder=folder, ports=ports)
    (folder / "slurm.conf").write_text(text)
    commands = [["slurmctld", "-D", "-c"], ["slurmd", "-D", "-N", NODE], ["slurmd", "-D", "-N", f"{NODE}-2"]]
    with pytest.MonkeyPatch.context() as patch, (folder / "log").open("ab") as log:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        daemons = [subprocess.Popen(command, stdout=log, stderr=log) for command in commands]
        try:
            job.wait_for(lambda: _idle(folder) == 2, "two idle nodes", folder / "log")
            yield folder
        finally:
            subprocess.run(["scancel", "--user", getpass.getuser()], check=False)
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait(job.SECONDS)


def _idle(folder: Path) -> int:
    """Number of nodes that wait for work; 0 while the controller does not answer."""
    shown = subprocess.run(["scontrol", "--oneliner", "show", "nodes"], capture_output=True, text=True, check=False)
    return shown.stdout.count("State=IDLE ")


def _waiting(number: str) -> int:
    """Number of nodes of the job that wait for their turn."""
    return len(says("squeue", "--noheader", "--states", "PENDING", "--jobs", number).splitlines())


def _submit(data: Path, output: Path) -> tuple[str, subprocess.CompletedProcess[str]]:
    """The number of the job, and what ``torchx run`` has said."""
    options = ["-cfg", "partition=debug,time=00:20:00", "mtl.train", "-j", "2x1"]
    options += ["--cpu", "1", "--memMB", "2000", "--max_retries", "1", "--rdzv_port", str(job.free_port())]
    torchx = [sys.executable, "-m", "torchx.cli.main", "run", "-s", "slurm", *options, *job.arguments(data, output)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # for torchrun
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(Path(__file__).parents[2])}
    said = subprocess.run(torchx, capture_output=True, text=True, check=False, env=environment, cwd=output.parent)
    number = re.search(r"slurm://torchx/(\d+)", said.stdout)
    assert number, said.stderr
    return number[1], said


def test_a_killed_rank_is_requeued_and_the_job_goes_on_to_its_end(cluster, tmp_path):
    data, output, log = funnel.prepare(tmp_path / "tiny"), tmp_path / "runs", cluster / "slurmctld.log"
    number, said = _submit(data, output)
    assert said.returncode == 1  # as docs/cluster.md says of a cluster without accounting
    assert "sacct" in said.stderr.splitlines()[-1]
    job.wait_for(lambda: job.checkpoint_steps(output), "a checkpoint", log)
    assert set(job.workers(output)) == {0, 1}
    job.kill(job.workers(output)[1])
    job.wait_for(lambda: _waiting(number) == 2, "both nodes of the job requeued", log)
    for part in re.findall(r"JobId=(\d+) ", says("scontrol", "show", "job", number)):
        says("scontrol", "update", f"JobId={part}", "StartTime=now")  # Slurm waits two minutes otherwise
    job.wait_for(lambda: (output / job.NAME / "results.json").exists(), "an end of the job", log)
    job.wait_for(lambda: not says("squeue", "--noheader", "--jobs", number).strip(), "an empty queue", log)
    logs = "".join(path.read_text() for path in sorted(tmp_path.glob(f"slurm-{number}-train-*")))
    assert re.search(r"resumes from \S*/step_\d+", logs)
    assert "State=COMPLETED" in says("scontrol", "show", "job", number).replace("JobState", "State")
