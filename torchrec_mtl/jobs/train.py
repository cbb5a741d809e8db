"""Trains models on a prepared funnel, one after the other, and reports them side by side.

``python -m torchrec_mtl.jobs.train --help``; as a TorchX job, ``torchx run -s local_cwd mtl.train``.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torchrec import EmbeddingBagCollection

from torchrec_mtl.data import BatchLoader, Schema, Split, read_split
from torchrec_mtl.errors import InputError, TrainingError
from torchrec_mtl.files import write_whole
from torchrec_mtl.jobs.datasets import DATASETS, dataset_directory
from torchrec_mtl.jobs.registry import MODELS
from torchrec_mtl.jobs.report import ModelReport, read_report, save_report, write_report
from torchrec_mtl.jobs.settings import SETTINGS, RunConfig, apply_overrides, first_difference
from torchrec_mtl.metrics import METRICS, Metric
from torchrec_mtl.modules import start_from_base_rates
from torchrec_mtl.training.distributed import default_device, distribute_as_planned, process_group
from torchrec_mtl.training.evaluation import early_stopping_metric, evaluate
from torchrec_mtl.training.faults import StopRequest
from torchrec_mtl.training.first_rank import on_first_rank
from torchrec_mtl.training.fit import fit, set_seed
from torchrec_mtl.training.monitor import Monitor
from torchrec_mtl.training.sharding import describe_plan, plan_sharding

EVALUATION_BATCH_SIZE = 2048


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; a wrong one prints the usage and exits with status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings to replace: path=value, e.g. training.max_epochs=3")
    parser.add_argument(
        "--models",
        default="single_task,shared_bottom,bpcm,tafe",
        help=f"names, separated by commas (default: %(default)s), of {', '.join(MODELS)}",
    )
    parser.add_argument(
        "--dataset", default="complete_journey", help=f"one of {list(DATASETS)}, or a prepared data set's folder"
    )
    parser.add_argument("--sample", type=float, default=0.2, help="share of a named data set's rows (%(default)s)")
    parser.add_argument("--raw", default="", help="folder of the raw files, for --dataset ali_ccp or taobao")
    parser.add_argument("--settings", default="", help=f"one of {list(SETTINGS)} (complete_journey for it, else paper)")
    parser.add_argument("--seed", type=int, default=0, help="of initialisation and row order (%(default)s)")
    parser.add_argument("--name", default="", help="of the run, a new one or one to go on with (the date and time)")
    parser.add_argument("--output", default="runs", help="folder for runs (%(default)s)")
    return parser.parse_intermixed_args(argv)  # settings may stand before, between and after options


def configure(args: argparse.Namespace) -> list[RunConfig]:
    """The models' runs, checked before anything is read."""
    settings = args.settings or ("complete_journey" if args.dataset == "complete_journey" else "paper")
    if settings not in SETTINGS:
        raise InputError(f"`settings` (={settings!r}) must be one of {list(SETTINGS)}")
    configs = []
    for model in args.models.split(","):
        if model not in MODELS:
            raise InputError(f"model {model!r} must be one of {list(MODELS)}")
        config = SETTINGS[settings](model)
        config = replace(config, training=replace(config.training, seed=args.seed))
        configs.append(apply_overrides(config, args.overrides))
    return configs


def run_directory(args: argparse.Namespace, configs: Sequence[RunConfig]) -> Path:
    """The run's own folder: a new one, or that of an unfinished run of the same settings, which goes on.

    Raises:
        InputError: if the run there is finished or was made with other settings; or if there is no name, and torchrun
            would start this job again under another one.
    """
    if not args.name and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        raise InputError("`name` must be given to a run that torchrun restarts, for it to be found again")
    directory = Path(args.output) / (args.name or datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    wanted = {config.model: asdict(config) for config in configs}
    file = directory / "config.json"
    if not directory.exists():
        directory.mkdir(parents=True)
        write_whole(file, json.dumps(wanted, indent=2) + "\n")
    elif (directory / "results.json").exists():
        raise InputError(f"`name` (={args.name!r}) must be a new or an unfinished run's, but {directory} is finished")
    elif not file.is_file():
        raise InputError(f"`name` (={args.name!r}) must be a new run's, but {directory} is there and is no run")
    elif difference := first_difference(json.loads(file.read_text()), wanted):
        raise InputError(f"{file}: the unfinished run was made with {difference}; name another, or remove the folder")
    return directory


def build_model(config: RunConfig, schema: Schema, device: torch.device) -> nn.Module:
    """The model with tables for the data's fields, on ``meta`` until they are sharded, and its paper's loss."""

    def init(table: torch.Tensor) -> None:
        nn.init.normal_(table, std=config.table_init)

    task_weights = config.loss_args.get("task_weights")
    if task_weights is not None and len(task_weights) != len(schema.tasks):
        raise InputError(f"`task_weights` (={task_weights}) must be one a task of the data: {list(schema.tasks)}")
    tables = schema.embedding_configs(config.embedding_dim)
    for table in tables:
        table.init_fn = init
    embedding_bag_collection = EmbeddingBagCollection(
        tables=tables, device=torch.device("meta"), is_weighted=bool(schema.id_weight_columns)
    )
    entry = MODELS[config.model]
    model = entry.model(
        embedding_bag_collection,
        schema.tasks,
        dense_in_features=len(schema.dense),
        dense_device=device,
        **{**entry.model_args, **config.model_args},
    )
    return entry.train(model, entry.loss(**{**entry.loss_args, **config.loss_args}).to(device))


def train_model(
    config: RunConfig,
    schema: Schema,
    splits: dict[str, Split],
    device: torch.device,
    directory: Path,
    stop_requested: Callable[[], bool] = lambda: False,
    metrics: Mapping[str, Metric] = METRICS,
) -> ModelReport:
    """Trains one model, then reads the test split, once; where ``splits`` has none, it ends with validation.

    What an interrupted call left in ``directory`` is gone on from; ``result.stopped`` tells of another interruption.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    title = MODELS[config.model].title
    set_seed(config.training.seed)
    built = build_model(config, schema, device)
    start_from_base_rates(built, splits["train"].base_rates())
    num_parameters = sum(p.numel() for p in built.parameters())
    plan = plan_sharding(built, config.training, device)
    if rank == 0 and world_size > 1:
        print(f"{title}: {describe_plan(plan, built, config.training, world_size)}", flush=True)
    model, optimizer = distribute_as_planned(built, plan, config.training, device)

    def batches(split: str) -> BatchLoader:
        return BatchLoader(splits[split], EVALUATION_BATCH_SIZE, rank=rank, world_size=world_size)

    train_batches = BatchLoader(
        splits["train"],
        config.training.batch_size // (world_size * config.training.micro_batches),
        shuffle=True,
        seed=config.training.seed,
        rank=rank,
        world_size=world_size,
        shuffle_window=config.training.shuffle_window or None,
        pin_memory=device.type == "cuda",
    )
    labels = {"model": config.model, "seed": config.training.seed, "dataset": schema.name}
    monitor = Monitor(directory if rank == 0 else None, **labels)
    result = fit(
        model,
        optimizer,
        train_batches,
        batches("valid"),
        schema.tasks,
        config.training,
        device,
        directory,
        monitor,
        title,
        stop_requested,
        metrics,
    )
    monitor.close()
    report = ModelReport(config, result, num_parameters)
    if "test" in splits and not result.stopped:
        test, group_of_row = batches("test"), splits["test"].groups
        groups = None if group_of_row is None else (group_of_row[rows] for rows in test.rows())
        measured = evaluate(model, test, schema.tasks, device, groups, metrics)
        report = replace(report, test=measured.compute(), curves=measured.calibration_curves())
    return report


def check_models(configs: Sequence[RunConfig], schema: Schema) -> None:
    """Builds every model on ``meta``: a wrong argument of the last one is told before the first is trained."""
    for config in configs:
        parts = dist.get_world_size() * config.training.micro_batches
        if config.training.batch_size % parts:
            raise InputError(
                f"`batch_size` (={config.training.batch_size}) must be a multiple of the number of processes times "
                f"`micro_batches` ({parts})"
            )
        early_stopping_metric(config.training)
        build_model(config, schema, torch.device("meta"))


def run(args: argparse.Namespace) -> None:
    """The whole job."""
    configs = configure(args)
    device = default_device()
    stop = StopRequest()
    with stop.listening(), process_group(device):
        data = dataset_directory(args.dataset, args.sample, args.raw)
        schema = Schema.load(data)
        check_models(configs, schema)
        splits = {split: read_split(data, split, schema) for split in ("train", "valid", "test")}
        directory = on_first_rank(lambda: run_directory(args, configs))
        reports = []
        for config in configs:
            own = directory / config.model
            report = on_first_rank(partial(read_report, config, own / "report.json"))
            if report is None:
                report = train_model(config, schema, splits, device, own, stop)
                if report.result.stopped:
                    if dist.get_rank() == 0:
                        print(f"{directory}: not finished; the same command with `--name {directory.name}` goes on")
                    return
                if dist.get_rank() == 0:
                    save_report(report, own / "report.json")
            reports.append(report)
        if dist.get_rank() == 0:
            write_report(reports, schema, directory)


def main(argv: Sequence[str] | None = None) -> int:
    """Status 0, when told to stop too; 2 with one sentence for a user's mistake, 1 for a run that cannot go on."""
    args = parse(argv)
    try:
        run(args)
    except (InputError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
