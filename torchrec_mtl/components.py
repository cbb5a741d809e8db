"""TorchX components: what ``torchx run mtl.<name>`` launches.

TorchX treats every function here as a component and imports this file for every command. Therefore everything that
components share is in `torchrec_mtl.jobs.launch`, and the module of a job is imported where its arguments are checked.
"""

import importlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Optional

import torchx.specs as specs

from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs import launch

IMAGE = "torchrec_mtl"  # built by `docker build -t torchrec_mtl .`


def train(
    *overrides: str,
    models: str = "single_task,shared_bottom,bpcm,tafe",
    dataset: str = "complete_journey",
    reader: str = "auto",
    sample: Optional[float] = None,  # noqa: UP045  (TorchX reads no other form)
    raw: str = "",
    settings: str = "",
    metrics: str = "auc",
    trackers: str = "tensorboard",
    days: str = "",
    bounds: str = "",
    skip_days: str = "",
    seed: int = 0,
    name: str = "",
    output: str = "runs",
    redact: bool = False,
    timeout: int = 600,
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
        models: names of the models, separated by commas; a model from your own module is package.module:SYSTEM
        dataset: complete_journey, synthetic, ali_ccp or taobao; a declared table as shop.py; package.module:DATA_SET;
            a prepared folder or its URI
        reader: how rows are read: mapped, from columns written once; stream, in place; auto streams from a URI
        sample: share of the rows of a data set known by name, by default 0.2, or of the groups of a declared table
        raw: folder of the raw files of ali_ccp or taobao
        settings: initial settings, complete_journey or paper; by default the data set's, otherwise paper
        metrics: metrics that tables show, separated by commas; a metric from your own module is package.module:METRIC
        trackers: what records loss and validation, separated by commas: tensorboard, mlflow, package.module:TRACKER
        days: days of a declared table, 2026-11-01..2026-11-07, each scored by the day before, then trained on
        bounds: bounds within which a day is published, such as least_auc=0.6
        skip_days: days to leave out, separated by commas
        seed: seed of initialisation and row order
        name: name of the run, a new one or an unfinished one to resume; by default the date and time of the launch
        output: folder in which the folder of the run is made; all nodes must see it
        redact: whether to leave ids and other values of the data out of messages, saved batches and bad_rows.tsv
        timeout: seconds without a step after which every process leaves its stack in the folder of the run and ends
        j: nodes x processes per node, such as 2x8; or fewest:most nodes, such as 1:2x8
        image: image for container schedulers
        cpu: number of cores per node
        gpu: number of GPUs per node
        memMB: memory per node, in MB
        max_restarts: number of times that torchrun restarts failed processes from the last checkpoint
        max_retries: number of times that the scheduler restarts the job from the last checkpoint
        rdzv_port: port of the first node, at which the nodes meet
        mounts: mounts for container schedulers, such as type=bind,src=/shared,dst=/shared
    """
    name = name or datetime.now().strftime("%Y-%m-%d_%H-%M-%S")  # fixed here, so that a restarted job finds its run
    arguments = ["--models", models, "--dataset", dataset, "--reader", reader, *launch.option("--sample", sample)]
    arguments += ["--raw", raw, "--settings", settings, "--metrics", metrics]
    arguments += ["--trackers", trackers, "--seed", str(seed), "--name", name]
    of_days = {"--days": days, "--bounds": bounds, "--skip-days": skip_days}
    arguments += [text for option, value in of_days.items() if value for text in (option, value)]
    arguments += ["--output", output, "--timeout", str(timeout), *launch.flag("--redact", redact), *overrides]
    with launch.exit_on_input_error():
        from torchrec_mtl.jobs.train_arguments import check_arguments

        check_arguments(arguments, launch.num_processes(j))
        return launch.torchrun(
            "train", arguments, j, image, cpu, gpu, memMB, max_restarts, max_retries, rdzv_port, mounts
        )


def compare(
    *overrides: str,
    protocol: str = "complete_journey",
    datasets: str = "complete_journey",
    sample: Optional[float] = None,  # noqa: UP045  (TorchX reads no other form)
    raw: str = "",
    models: str = "",
    seeds: int = 5,
    workers: int = 0,
    stages: str = "search,final,sweep,efficiency,report",
    metrics: str = "auc",
    output: str = "runs/compare",
    finished: str = "",
    redact: bool = False,
    image: str = IMAGE,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,  # noqa: N803
    max_retries: int = 0,
    mounts: str = "",
) -> specs.AppDef:
    """Compares systems under one protocol, on one machine: models x seeds x data sets, one report.

    Args:
        overrides: settings to replace in every run, path=value
        protocol: protocol of the comparison: complete_journey, paper, balancing, or one of the papers' tables
        datasets: names of data sets, declared tables as shop.py, or prepared folders or URIs, separated by commas
        sample: share of the rows of data sets known by name, by default 0.2, or of the groups of a declared table
        raw: folder of the raw files of ali_ccp or taobao
        models: names of models of the protocol, separated by commas; all by default; your own are package.module:SYSTEM
        seeds: number of seeds
        workers: number of runs at a time; by default one per GPU, or per core if there is no GPU
        stages: stages to run, separated by commas
        metrics: metrics that the report shows, separated by commas; your own are package.module:METRIC
        output: folder of the comparison, a new one or one to resume
        finished: folder of the CSV files of finished runs, from which it goes on; by default the output
        redact: whether to leave ids and other values of the data out of messages, saved batches and bad_rows.tsv
        image: image for container schedulers
        cpu: number of cores
        gpu: number of GPUs
        memMB: memory, in MB
        max_retries: number of times that the scheduler restarts the job; finished runs are not repeated
        mounts: mounts for container schedulers, such as type=bind,src=/shared,dst=/shared
    """
    arguments = ["--protocol", protocol, "--datasets", datasets, *launch.option("--sample", sample), "--raw", raw]
    arguments += ["--models", models, "--seeds", str(seeds), "--workers", str(workers or gpu or cpu)]
    arguments += ["--stages", stages, "--metrics", metrics, "--output", output, "--finished", finished]
    arguments += [*launch.flag("--redact", redact), *overrides]
    with launch.exit_on_input_error():
        from torchrec_mtl.jobs.compare.job import check_arguments

        launch.check_resources(cpu, gpu, memMB, max_retries)
        check_arguments(arguments)
        return launch.program("torchrec_mtl", ["compare", *arguments], image, cpu, gpu, memMB, max_retries, mounts)


def prepare(
    *arguments: str,
    dataset: str,
    output: str,
    raw: str = "",
    declaration: str = "",
    protocol: str = "",
    bad_rows: str = "strict",
    redact: bool = False,
    image: str = IMAGE,
    cpu: int = 2,
    memMB: int = 16384,  # noqa: N803
    max_retries: int = 0,
    mounts: str = "",
) -> specs.AppDef:
    """Prepares a public data set from its raw files, or any table as it is declared.

    Args:
        arguments: further arguments of the data set, after --, as in -- --sample 0.1
        dataset: name of the data set, such as ali_ccp; or table
        output: folder of the prepared data set
        raw: folder of the raw files of a public data set, as they were downloaded
        declaration: declaration of a table, such as shop.py
        protocol: fields and rules; by default the data set's
        bad_rows: strict to refuse a file with a bad row, quarantine to set bad rows aside
        redact: whether to leave ids and other values of the data out of messages, saved batches and bad_rows.tsv
        image: image for container schedulers
        cpu: number of cores
        memMB: memory, in MB
        max_retries: number of times that the scheduler restarts the job
        mounts: mounts for container schedulers, such as type=bind,src=/shared,dst=/shared
    """
    given = {"raw": raw, "declaration": declaration, "output": output, "bad-rows": bad_rows, "protocol": protocol}
    options = [word for name, value in given.items() if value for word in (f"--{name}", value)]
    options += launch.flag("--redact", redact)
    passed = [dataset, *options, *arguments]
    with launch.exit_on_input_error():
        from torchrec_mtl.jobs.prepare import parse

        parse(passed)
        return launch.program("torchrec_mtl", ["prepare", *passed], image, cpu, 0, memMB, max_retries, mounts)


def evaluate(
    *arguments: str,
    run: str,
    dataset: str,
    split: str = "test",
    j: str = "1x1",
    image: str = IMAGE,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 4096,  # noqa: N803
    rdzv_port: int = 29500,
    mounts: str = "",
) -> specs.AppDef:
    """Measures a trained run on a prepared data set.

    Args:
        arguments: further options of the job, after --, as in -- --by week
        run: folder of the run, or of a model in it
        dataset: complete_journey, synthetic, ali_ccp or taobao; package.module:DATA_SET; or a prepared folder
        split: train, valid or test
        j: nodes x processes per node, such as 2x8; tables are sharded over several processes
        image: image for container schedulers
        cpu: number of cores per node
        gpu: number of GPUs per node
        memMB: memory per node, in MB
        rdzv_port: port of the first node, at which the nodes meet
        mounts: mounts for container schedulers, such as type=bind,src=/shared,dst=/shared
    """
    passed = [run, "--dataset", dataset, "--split", split, *arguments]
    return _with_run("evaluate", passed, j, image, cpu, gpu, memMB, rdzv_port, mounts)


def predict(
    *arguments: str,
    run: str,
    input: str,
    output: str,
    j: str = "1x1",
    image: str = IMAGE,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 4096,  # noqa: N803
    rdzv_port: int = 29500,
    mounts: str = "",
) -> specs.AppDef:
    """Scores rows with a trained run.

    Args:
        arguments: further options of the job, after --, as in -- --keep user --values click=1,buy=20
        run: folder of the run, or of a model in it
        input: file, folder or glob of rows
        output: parquet file for the scores
        j: nodes x processes per node, such as 2x8; tables are sharded over several processes
        image: image for container schedulers
        cpu: number of cores per node
        gpu: number of GPUs per node
        memMB: memory per node, in MB
        rdzv_port: port of the first node, at which the nodes meet
        mounts: mounts for container schedulers, such as type=bind,src=/shared,dst=/shared
    """
    passed = [run, "--input", input, "--output", output, *arguments]
    return _with_run("predict", passed, j, image, cpu, gpu, memMB, rdzv_port, mounts)


def calibrate(
    *arguments: str,
    run: str,
    dataset: str,
    method: str = "isotonic",
    j: str = "1x1",
    image: str = IMAGE,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 4096,  # noqa: N803
    rdzv_port: int = 29500,
    mounts: str = "",
) -> specs.AppDef:
    """Calibrates a trained run on the validation split.

    Args:
        arguments: further options of the job, after --, as in -- --model tafe
        run: folder of the run, or of a model in it
        dataset: complete_journey, synthetic, ali_ccp or taobao; package.module:DATA_SET; or a prepared folder
        method: isotonic or platt
        j: nodes x processes per node, such as 2x8; tables are sharded over several processes
        image: image for container schedulers
        cpu: number of cores per node
        gpu: number of GPUs per node
        memMB: memory per node, in MB
        rdzv_port: port of the first node, at which the nodes meet
        mounts: mounts for container schedulers, such as type=bind,src=/shared,dst=/shared
    """
    passed = [run, "--dataset", dataset, "--method", method, *arguments]
    return _with_run("calibrate", passed, j, image, cpu, gpu, memMB, rdzv_port, mounts)


def export(
    *arguments: str,
    run: str,
    dataset: str,
    output: str,
    table_type: str = "int8",
    image: str = IMAGE,
    cpu: int = 2,
    memMB: int = 8192,  # noqa: N803
    mounts: str = "",
) -> specs.AppDef:
    """Exports a trained run as a package that scores rows without the training code.

    Args:
        arguments: further options of the job, after --, as in -- --march x86-64-v3
        run: folder of the run, or of a model in it
        dataset: complete_journey, synthetic, ali_ccp or taobao; package.module:DATA_SET; or a prepared folder
        output: folder of the package, a new one
        table_type: type of the tables' rows: fp32, fp16, int8 or int4
        image: image for container schedulers
        cpu: number of cores
        memMB: memory, in MB
        mounts: mounts for container schedulers, such as type=bind,src=/shared,dst=/shared
    """
    passed = [run, "--dataset", dataset, "--output", output, "--table-type", table_type, *arguments]
    with launch.exit_on_input_error():
        from torchrec_mtl.jobs.export import parse

        parse(passed)
        return launch.program("torchrec_mtl", ["export", *passed], image, cpu, 0, memMB, 0, mounts)


def _with_run(
    job: str,
    arguments: Sequence[str],
    j: str,
    image: str,
    cpu: int,
    gpu: int,
    memMB: int,  # noqa: N803
    rdzv_port: int,
    mounts: str,
) -> specs.AppDef:
    with launch.exit_on_input_error():
        importlib.import_module(f"torchrec_mtl.jobs.{job}").parse(arguments)
        return launch.torchrun(job, arguments, j, image, cpu, gpu, memMB, 0, 0, rdzv_port, mounts)


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
        arguments: arguments of the program, after --, as in -- --help
        program: name of the program, such as peers or peers.quality
        image: image for container schedulers
        cpu: number of cores
        gpu: number of GPUs
        memMB: memory, in MB
        mounts: mounts for container schedulers, such as type=bind,src=/shared,dst=/shared
    """
    with launch.exit_on_input_error():
        files = [file for file in Path("benchmarks").rglob("*.py") if "__main__" in file.read_text(encoding="utf-8")]
        paths = [file.parent if file.stem == "__main__" else file.with_suffix("") for file in files]
        programs = sorted(".".join(path.parts[1:]) for path in paths)
        if program not in programs:
            raise InputError(f"`program` (={program!r}) must be one of {Path('benchmarks').resolve()}: {programs}")
        return launch.program(f"benchmarks.{program}", arguments, image, cpu, gpu, memMB, 0, mounts)
