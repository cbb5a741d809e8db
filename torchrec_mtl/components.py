"""TorchX components: what ``torchx run mtl.<name>`` launches."""

import sys

import torchx.specs as specs
from torchx.components import dist

from torchrec_mtl.jobs.environment import worker_environment


def _check(arguments: list[str]) -> None:
    """Tells a user's mistake here, with status 2, rather than from every process of a scheduled job."""
    from torchrec_mtl.errors import InputError  # heavy imports: TorchX imports this file for every command
    from torchrec_mtl.jobs.train import configure, parse

    try:
        configure(parse(arguments))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def train(
    *overrides: str,
    models: str = "single_task,shared_bottom,bpcm,tafe",
    dataset: str = "complete_journey",
    sample: float = 0.2,
    raw: str = "",
    settings: str = "",
    seed: int = 0,
    name: str = "",
    output: str = "runs",
    j: str = "1x2",
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 4096,  # noqa: N803  (TorchX's own name)
) -> specs.AppDef:
    """Trains models on a funnel and reports them side by side.

    Args:
        overrides: settings to replace, path=value, such as training.max_epochs=3 or tafe.model_args.num_layers=4
        models: names of the models, separated by commas
        dataset: complete_journey, ali_ccp, or the folder of a prepared data set
        sample: share of complete_journey's or ali_ccp's rows, above 0 and at most 1
        raw: folder of the raw files of ali_ccp
        settings: sizes and schedules, complete_journey or paper; the first for that data, else the second
        seed: of initialisation and row order
        name: of the run; the date and time by default
        output: folder that the run's own folder is made in
        j: nodes x processes a node
        cpu: cores a node
        gpu: GPUs a node
        memMB: memory of a node, in MB
    """
    arguments = ["--models", models, "--dataset", dataset, "--sample", str(sample), "--raw", raw]
    arguments += ["--settings", settings, "--seed", str(seed), "--name", name, "--output", output, *overrides]
    _check(arguments)
    module = "torchrec_mtl.jobs.train"
    num_nodes, processes = (int(part) for part in j.split("x")) if "x" in j else (1, int(j))
    env = worker_environment(cpu, processes)
    if num_nodes * processes > 1:
        return dist.ddp(*arguments, m=module, name="/train", cpu=cpu, gpu=gpu, memMB=memMB, j=j, env=env)
    role = specs.Role(
        name="train",
        image="",
        entrypoint=sys.executable,
        args=["-m", module, *arguments],
        env=env,
        resource=specs.resource(cpu=cpu, gpu=gpu, memMB=memMB),
    )
    return specs.AppDef(name="train", roles=[role])
