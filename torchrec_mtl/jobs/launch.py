"""Describes jobs to TorchX, and reports mistakes before anything is launched."""

import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torchx.specs as specs
from torchx.components import dist

from torchrec_mtl.errors import InputError, check_at_least
from torchrec_mtl.jobs.environment import agent_environment, network_settings, worker_environment
from torchrec_mtl.jobs.messages import quiet_import


@contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Prints an `InputError` as one sentence and ends ``torchx run`` with status 2; within it, imports log nothing."""
    try:
        with quiet_import():
            yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def num_processes(j: str) -> int:
    """Number of processes that ``j`` asks for on all nodes, the most of them.

    Example::

        >>> num_processes("2x8"), num_processes("1:2x4"), num_processes("3")
        (16, 8, 3)
    """
    each = processes_a_node(j, gpu=0)
    return each * int(j.rpartition("x")[0].rpartition(":")[2] or 1)


def processes_a_node(j: str, gpu: int) -> int:
    """Number of processes that ``j`` asks for on each node.

    Raises:
        InputError: if ``j`` does not have the right form, or a node has GPUs but fewer than processes.

    Example::

        >>> processes_a_node("2x8", gpu=8), processes_a_node("1:2x4", gpu=0), processes_a_node("3", gpu=0)
        (8, 4, 3)
    """
    form = re.fullmatch(r"(?:(?:([1-9]\d*):)?([1-9]\d*)x)?([1-9]\d*)", j)
    if not form or int(form[1] or 1) > int(form[2] or 1):
        raise InputError(f"`j` (={j!r}) must be nodes x processes a node, as 2x8, or fewest:most nodes, as 1:2x8")
    processes = int(form[3])
    if gpu and processes > gpu:
        raise InputError(f"`j` (={j!r}) must be for at most `gpu` (={gpu}) processes a node")
    return processes


def option(name: str, value: object) -> list[str]:
    """The option with its value, unless that is None."""
    return [] if value is None else [name, str(value)]


def flag(option: str, given: bool) -> list[str]:
    """The command-line words of an option without a value."""
    return [option] if given else []


def check_resources(cpu: int, gpu: int, memMB: int, max_retries: int) -> None:  # noqa: N803
    """Raises `InputError` unless a node can have these resources and be started again so often.

    Example::

        >>> check_resources(cpu=2, gpu=0, memMB=0, max_retries=0)
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `memMB` (=0) must be at least 1
    """
    check_at_least(1, cpu=cpu, memMB=memMB)
    check_at_least(0, gpu=gpu, max_retries=max_retries)


def _mounts(text: str) -> list[specs.BindMount | specs.VolumeMount | specs.DeviceMount]:
    try:
        return specs.parse_mounts(text.split(",")) if text else []
    except (KeyError, ValueError) as error:
        raise InputError(f"`mounts` (={text!r}) must be as type=bind,src=/host,dst=/job; {error.args[0]}") from error


def program(
    module: str,
    arguments: Sequence[str],
    image: str,
    cpu: int,
    gpu: int,
    memMB: int,  # noqa: N803  (TorchX's own name)
    max_retries: int,
    mounts: str,
) -> specs.AppDef:
    """Describes ``python -m module`` as a job of one process.

    Raises:
        InputError: if a resource is out of its range, or ``mounts`` does not have TorchX's form.
    """
    check_resources(cpu, gpu, memMB, max_retries)
    name = arguments[0] if module == "torchrec_mtl" else module.rpartition(".")[2]
    role = specs.Role(
        name=name,
        image=image,
        entrypoint="python",
        args=["-m", module, *arguments],
        env=worker_environment(cpu, processes=1),
        resource=specs.resource(cpu=cpu, gpu=gpu, memMB=memMB),
        max_retries=max_retries,
        mounts=_mounts(mounts),
    )
    return specs.AppDef(name=name, roles=[role])


def torchrun(
    job: str,
    arguments: Sequence[str],
    j: str,
    image: str,
    cpu: int,
    gpu: int,
    memMB: int,  # noqa: N803
    max_restarts: int,
    max_retries: int,
    rdzv_port: int,
    mounts: str,
) -> specs.AppDef:
    """Describes ``torchrun -m torchrec_mtl job`` on every node.

    Raises:
        InputError: if a resource, a number of restarts or the port is out of its range, or ``j`` or ``mounts`` does not
            have the right form.
    """
    check_resources(cpu, gpu, memMB, max_retries)
    check_at_least(0, max_restarts=max_restarts)
    if not 1 <= rdzv_port <= 65535:
        raise InputError(f"`rdzv_port` (={rdzv_port}) must be from 1 to 65535")
    env = {**worker_environment(cpu, processes_a_node(j, gpu)), **agent_environment(max_restarts)}
    launcher = getattr(dist, "torchrun", None) or dist.ddp  # its name after TorchX 0.7, and in 0.7
    app = launcher(
        job,
        *arguments,
        m="torchrec_mtl",
        name=f"/{job}",
        image=image,
        cpu=cpu,
        gpu=gpu,
        memMB=memMB,
        j=f"1x{j}" if j.isdigit() else j,
        env=env,
        max_retries=max_retries,
        rdzv_port=rdzv_port,
    )
    role = app.roles[0]
    role.name = job  # TorchX uses the name of the module
    role.mounts = _mounts(mounts)
    # In the command, not in the role's environment: Slurm cuts values there at commas, as between names of interfaces.
    settings = [f"{name}={value}" for name, value in network_settings(os.environ).items()]
    if settings:
        role.args[-1] = f"{shlex.join(['env', *settings]).replace('$', '$$')} {role.args[-1]}"
    return app
