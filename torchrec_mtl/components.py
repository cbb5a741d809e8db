"""TorchX components: what ``torchx run mtl.<name>`` launches.

TorchX takes every function here for a component, and imports this file for every command: what the components share
is in `torchrec_mtl.jobs.launch`, and a job's own module is imported where its arguments are checked.
"""

from datetime import datetime
from pathlib import Path

import torchx.specs as specs

from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs import launch

IMAGE = "torchrec_mtl"  # made by `docker build -t torchrec_mtl .`


def train(
    *overrides: str,
    models: str = "single_task,shared_bottom,bpcm,tafe",
    dataset: str = "complete_journey",
    sample: float = 0.2,
    raw: str = "",
    settings: str = "",
    metrics: str = "auc",
    seed: int = 0,
    name: str = "",
    output: str = "runs",
    j: str = "1x2",
    image: str = IMAGE,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 4096,  # noqa: N803  (TorchX's own name)
    max_restarts: int = 0,
    max_retries: int = 0,
    rdzv_port: int = 29500,
    mounts: str = "",
) -> specs.AppDef:
    """Trains models on a funnel and reports them side by side.

    Args:
        overrides: settings to replace, path=value, such as training.max_epochs=3 or tafe.model_args.num_layers=4
        models: names of the models, separated by commas; one of your own is package.module:SYSTEM
        dataset: complete_journey, synthetic, ali_ccp or taobao, package.module:DATA_SET, or a prepared folder
        sample: share of a named data set's rows, above 0 and at most 1
        raw: folder of the raw files of ali_ccp or taobao
        settings: sizes and schedules, complete_journey or paper; the first for that data, else the second
        metrics: that tables show, separated by commas; one of your own is package.module:METRIC
        seed: of initialisation and row order
        name: of the run, a new one or one to go on with; the date and time of the launch by default
        output: folder that the run's own folder is made in; all nodes must see it
        j: nodes x processes a node, such as 2x8; or fewest:most nodes, such as 1:2x8
        image: of container schedulers
        cpu: cores a node
        gpu: GPUs a node
        memMB: memory of a node, in MB
        max_restarts: how often torchrun starts the processes again, from the last checkpoint, when one has failed
        max_retries: how often the scheduler starts the job again, likewise
        rdzv_port: of the first node, where the nodes meet
        mounts: of container schedulers, such as type=bind,src=/shared,dst=/shared
    """
    name = name or datetime.now().strftime("%Y-%m-%d_%H-%M-%S")  # fixed here: a restarted job finds its run by it
    arguments = ["--models", models, "--dataset", dataset, "--sample", str(sample), "--raw", raw]
    arguments += ["--settings", settings, "--metrics", metrics, "--seed", str(seed), "--name", name]
    arguments += ["--output", output, *overrides]
    with launch.exit_on_input_error():
        from torchrec_mtl.jobs.train import check_arguments

        check_arguments(arguments)
        return launch.torchrun(
            "train", arguments, j, image, cpu, gpu, memMB, max_restarts, max_retries, rdzv_port, mounts
        )


def compare(
    *overrides: str,
    protocol: str = "complete_journey",
    datasets: str = "complete_journey",
    sample: float = 0.2,
    raw: str = "",
    models: str = "",
    seeds: int = 5,
    workers: int = 0,
    stages: str = "search,final,sweep,efficiency,report",
    metrics: str = "auc",
    output: str = "runs/compare",
    image: str = IMAGE,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,  # noqa: N803
    max_retries: int = 0,
    mounts: str = "",
) -> specs.AppDef:
    """Compares systems under one protocol, on one machine: models x seeds x data sets, one report.

    Args:
        overrides: settings replaced in every run, path=value
        protocol: what is compared and how: complete_journey, paper, or one of the papers' tables
        datasets: names or prepared folders, separated by commas
        sample: share of a named data set's rows, above 0 and at most 1
        raw: folder of the raw files of ali_ccp or taobao
        models: names, separated by commas; all of the protocol's by default; one of your own is package.module:SYSTEM
        seeds: how many
        workers: runs at a time; by default one a GPU, or a core where there is none
        stages: which, separated by commas
        metrics: that the report shows, separated by commas; one of your own is package.module:METRIC
        output: folder of the comparison, a new one or one to go on with
        image: of container schedulers
        cpu: cores
        gpu: GPUs
        memMB: memory, in MB
        max_retries: how often the scheduler starts the job again; finished runs are not made again
        mounts: of container schedulers, such as type=bind,src=/shared,dst=/shared
    """
    arguments = ["--protocol", protocol, "--datasets", datasets, "--sample", str(sample), "--raw", raw]
    arguments += ["--models", models, "--seeds", str(seeds), "--workers", str(workers or gpu or cpu)]
    arguments += ["--stages", stages, "--metrics", metrics, "--output", output, *overrides]
    with launch.exit_on_input_error():
        from torchrec_mtl.jobs.compare.job import check, parser

        check(parser().parse(arguments))
        return launch.program("torchrec_mtl", ["compare", *arguments], image, cpu, gpu, memMB, max_retries, mounts)


def prepare(
    *arguments: str,
    dataset: str,
    raw: str,
    output: str,
    protocol: str = "",
    bad_rows: str = "strict",
    image: str = IMAGE,
    cpu: int = 2,
    memMB: int = 16384,  # noqa: N803
    max_retries: int = 0,
    mounts: str = "",
) -> specs.AppDef:
    """Prepares a public data set from its raw files.

    Args:
        arguments: what else the data set takes, after --, as in -- --sample 0.1
        dataset: which, such as ali_ccp
        raw: folder of the raw files, as they were downloaded
        output: the prepared data set's own folder
        protocol: fields and rules; the data set's own default
        bad_rows: refuse them, strict, or put them aside
        image: of container schedulers
        cpu: cores
        memMB: memory, in MB
        max_retries: how often the scheduler starts the job again
        mounts: of container schedulers, such as type=bind,src=/shared,dst=/shared
    """
    options = ["--raw", raw, "--output", output, "--bad-rows", bad_rows]
    options += ["--protocol", protocol] if protocol else []
    passed = [dataset, *options, *arguments]
    with launch.exit_on_input_error():
        from torchrec_mtl.jobs.prepare import parse

        parse(passed)
        return launch.program("torchrec_mtl", ["prepare", *passed], image, cpu, 0, memMB, max_retries, mounts)


def bench(
    *arguments: str,
    program: str,
    image: str = IMAGE,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,  # noqa: N803
    mounts: str = "",
) -> specs.AppDef:
    """Runs a program of benchmarks/, from the root of a clone.

    Args:
        arguments: the program's own, after --, as in -- --help
        program: its name, such as peers or, in a folder, scaling.chart
        image: of container schedulers
        cpu: cores
        gpu: GPUs
        memMB: memory, in MB
        mounts: of container schedulers, such as type=bind,src=/shared,dst=/shared
    """
    with launch.exit_on_input_error():
        files = [file for file in Path("benchmarks").rglob("*.py") if "__main__" in file.read_text(encoding="utf-8")]
        paths = [file.parent if file.stem == "__main__" else file.with_suffix("") for file in files]
        programs = sorted(".".join(path.parts[1:]) for path in paths)
        if program not in programs:
            raise InputError(f"`program` (={program!r}) must be one of {Path('benchmarks').resolve()}: {programs}")
        return launch.program(f"benchmarks.{program}", arguments, image, cpu, gpu, memMB, 0, mounts)
