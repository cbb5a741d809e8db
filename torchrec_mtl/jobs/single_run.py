"""Trains one system, and measures it on the test split once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from torchrec_mtl.data import BatchLoader, Schema, Split, StreamedSplit, StreamLoader
from torchrec_mtl.data.steps import StepLoader
from torchrec_mtl.errors import InputError
from torchrec_mtl.files import make_folder, write_whole
from torchrec_mtl.jobs.build import build_to_train
from torchrec_mtl.jobs.results import ModelReport
from torchrec_mtl.jobs.run_config import RunConfig, flat
from torchrec_mtl.metrics import METRICS, Metric
from torchrec_mtl.training.distributed import distribute_as_planned
from torchrec_mtl.training.evaluation import evaluate
from torchrec_mtl.training.loop import TrainingLoop
from torchrec_mtl.training.monitor import Monitor
from torchrec_mtl.training.plan_report import describe_plan, summarize_plan
from torchrec_mtl.training.process_group import on_every_rank, set_seed
from torchrec_mtl.training.scenes import SceneMetrics
from torchrec_mtl.training.sharding import plan_sharding
from torchrec_mtl.training.trackers import TensorBoard, Tracker

EVALUATION_BATCH_SIZE = 2048
PLAN_FILE = "plan.txt"


def loader(
    split: Split | StreamedSplit, batch_size: int, shuffle: bool = False, *, negative_rate: float = 1.0, **options: Any
) -> StepLoader:
    """The batches of a split, with the ``options`` of either loader; without ``shuffle``, in an order that suits it.

    Raises:
        InputError: if negatives are to be left out of a split that is read in place, where a rank does not know how
            many rows the others keep.
    """
    if not isinstance(split, StreamedSplit):
        return BatchLoader(split, batch_size, shuffle, negative_rate=negative_rate, **options)
    if negative_rate < 1:
        raise InputError(f"`training.negative_rate` (={negative_rate}) must be 1 for data that are read in place")
    return StreamLoader(split, batch_size, shuffle=True, **options)  # each rank then reads its share only


def train_model(
    config: RunConfig,
    schema: Schema,
    splits: Mapping[str, Split | StreamedSplit],
    device: torch.device,
    directory: Path,
    stop_requested: Callable[[], bool] = lambda: False,
    metrics: Mapping[str, Metric] = METRICS,
    trackers: Sequence[Callable[[], Tracker]] = (TensorBoard,),
) -> ModelReport:
    """Trains one model and reads the test split once; without a test split in ``splits``, it ends with validation.

    Resumes from what an interrupted call left in ``directory``; ``result.stopped`` says whether this call was stopped.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    title = config.system.title
    set_seed(config.training.seed)
    built = on_every_rank(lambda: build_to_train(config, splits["train"], device))
    reads_groups = "groups" in built.of_batch
    num_parameters = sum(p.numel() for p in built.parameters())
    plan = plan_sharding(built, config.training, device)
    if rank == 0:
        make_folder(directory, "output")
        write_whole(directory / PLAN_FILE, describe_plan(plan, built, config.training, world_size) + "\n")
        if world_size > 1:
            summary = summarize_plan(plan, built, config.training, world_size)
            print(f"{title}: {summary}; each in {directory / PLAN_FILE}", flush=True)
    model, optimizer = distribute_as_planned(built, plan, config.training, device)

    of_rank: dict[str, Any] = {"rank": rank, "world_size": world_size, "pin_memory": device.type == "cuda"}
    of_rank["with_groups"] = reads_groups

    def batches(split: str) -> StepLoader:
        return loader(splits[split], EVALUATION_BATCH_SIZE, **of_rank)

    train_batches = loader(
        splits["train"],
        config.training.batch_size // (world_size * config.training.micro_batches),
        shuffle=True,
        seed=config.training.seed,
        shuffle_window=config.training.shuffle_window or None,
        negative_rate=config.training.negative_rate,
        **of_rank,
    )
    labels = {"model": config.name, "seed": config.training.seed, "dataset": schema.name}
    of_first = [tracker() for tracker in trackers] if rank == 0 else ()
    monitor = Monitor(directory if rank == 0 else None, of_first, flat(config.as_dict()), **labels)
    loop = TrainingLoop(
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
    result = loop.run()
    monitor.close(finished=not result.stopped)
    report = ModelReport(config, result, num_parameters)
    if "test" in splits and not result.stopped:
        test, where = batches("test"), f"{title}, step {result.best_step}, test split"
        groups, scenes = test.groups(), None
        if config.scene:
            num_scenes = next(field.num_embeddings for field in schema.fields if field.name == config.scene)
            scenes = SceneMetrics(config.scene, num_scenes, schema.tasks, groups is not None, metrics)
        measured = evaluate(model, test, schema.tasks, device, groups, metrics, where, scenes)
        report = replace(report, test=measured.compute(), curves=measured.calibration_curves())
        report = report if scenes is None else replace(report, scenes=scenes.compute())
    return report
