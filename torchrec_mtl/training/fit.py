"""The training loop: TorchRec's pipeline, validation, early stopping."""

import random
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LinearLR, LRScheduler
from torchrec.distributed.embedding_types import ShardedModule
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist

from torchrec_mtl.metrics import MultiTaskMetrics
from torchrec_mtl.tasks import TaskChain
from torchrec_mtl.training.checkpoint import load_weights, save_weights
from torchrec_mtl.training.config import TrainingConfig
from torchrec_mtl.training.monitor import Monitor, progress_bar

Rows = list[dict[str, Any]]


class Batches(Protocol):
    """An epoch of batches on this rank, such as `torchrec_mtl.data.BatchLoader`."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def set_epoch(self, epoch: int) -> None: ...


@dataclass
class TrainingResult:
    """What came of a run.

    Args:
        history: validation rows ``{step, split, task, space, metric, value}``, in order.
        best_step: the optimizer step whose weights were kept.
        best_score: their mean validation AUC.
        samples_per_second: training rows per second of training, evaluation left out, over all ranks.
    """

    history: Rows = field(default_factory=list)
    best_step: int = 0
    best_score: float = float("-inf")
    samples_per_second: float = 0.0


def set_seed(seed: int) -> None:
    """Seeds Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def autocast(config: TrainingConfig, device: torch.device) -> AbstractContextManager[None]:
    """bf16 autocast if the run asks for it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


def evaluate(
    model: nn.Module, batches: Iterable[Any], tasks: TaskChain, device: torch.device, group: str | None = None
) -> MultiTaskMetrics:
    """Collects the predictions of ``model`` for this rank's batches; ``compute()`` then measures all ranks'.

    Args:
        model: a `MultiTaskTrain`, distributed or not.
        batches: this rank's part of the split; as many on every rank.
        tasks: the funnel.
        device: where the model runs.
        group: the single-valued sparse feature whose ids group rows for GAUC, if any.

    Returns:
        The metrics, to be computed by every rank.
    """
    metrics = MultiTaskMetrics(tasks, with_groups=group is not None)
    was_training = model.training
    sharded = any(isinstance(module, ShardedModule) for module in model.modules())
    model.eval()
    with torch.no_grad():
        for batch in batches:
            if not len(batch.labels) and not sharded:
                continue  # only sharded tables take an empty batch, and they must: the other ranks wait for them
            batch = batch.to(device)
            _, (_, logits, labels) = model(batch)
            groups = None if group is None else batch.sparse_features[group].values()
            metrics.update(logits.float(), labels, batch.weights, groups)
    model.train(was_training)
    return metrics


def mean_auc(rows: Rows) -> float:
    """The mean of the tasks' AUCs over all impressions: what early stopping goes by."""
    values = [r["value"] for r in rows if r["metric"] == "auc" and r["space"] == "impressions"]
    return float(np.mean(values))


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train_batches: Batches,
    valid_batches: Iterable[Any],
    tasks: TaskChain,
    config: TrainingConfig,
    device: torch.device,
    directory: Path,
    monitor: Monitor,
    description: str = "train",
) -> TrainingResult:
    """Trains until validation stops improving, and leaves the best weights in the model and in ``best/``.

    Args:
        model: a `MultiTaskTrain`, distributed by `distribute`.
        optimizer: its optimizer.
        train_batches: this rank's part of every global batch.
        valid_batches: this rank's part of the validation split.
        tasks: the funnel.
        config: the run.
        device: where the model runs.
        directory: where ``best/`` goes.
        monitor: takes loss and validation metrics.
        description: what the progress bar says.

    Returns:
        The validation history and the throughput.
    """
    pipeline_class: Any = TrainPipelineSparseDist if device.type == "cuda" else TrainPipelineBase
    pipeline = pipeline_class(model, optimizer, device)
    result = TrainingResult()
    steps_per_epoch = len(train_batches)
    schedule = _schedule(optimizer, config, steps_per_epoch * config.max_epochs)
    interval = max(1, -(-steps_per_epoch // config.evaluations_per_epoch))
    batches = _all_epochs(train_batches, config.max_epochs)  # one stream: pipelines fetch ahead
    step, seconds, without_gain = 0, 0.0, 0
    for epoch in range(config.max_epochs):
        for start in range(0, steps_per_epoch, interval):
            steps = min(interval, steps_per_epoch - start)
            name = f"{description} epoch {epoch + 1}/{config.max_epochs}"
            began = time.perf_counter()
            with autocast(config, device):
                loss = _run_steps(pipeline, schedule, batches, steps, config.batch_size, name)
            seconds += time.perf_counter() - began
            step += steps
            metrics = evaluate(model, valid_batches, tasks, device)
            rows = [{"split": "valid", **row} for row in metrics.compute()]
            score = mean_auc(rows)
            result.history += [{"step": step, **row} for row in rows]
            monitor.scalars(step, [{"split": "train", "metric": "loss", "value": loss}, *rows])
            _say(f"{name}, step {step}: loss {loss:.4f}, validation AUC {_aucs(rows)}, mean {score:.4f}")
            without_gain += 1
            if score > result.best_score:
                result.best_score, result.best_step, without_gain = score, step, 0
                save_weights(model, directory / "best")
            if without_gain >= config.patience:
                break
        if without_gain >= config.patience:
            _say(f"{description}: no better for {without_gain} evaluations, stopped")
            break
    result.samples_per_second = step * config.batch_size / seconds
    load_weights(model, directory / "best")
    return result


def _all_epochs(batches: Batches, num_epochs: int) -> Iterator[Any]:
    for epoch in range(num_epochs):
        batches.set_epoch(epoch)
        yield from batches


def _schedule(optimizer: torch.optim.Optimizer, config: TrainingConfig, num_steps: int) -> LRScheduler:
    if config.learning_rate_decay == "linear":
        return LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=num_steps)
    return LambdaLR(optimizer, lambda step: 1.0)


def _run_steps(
    pipeline: TrainPipelineBase[Any, Any],
    schedule: LRScheduler,
    batches: Iterator[Any],
    steps: int,
    batch_size: int,
    name: str,
) -> float:
    """Takes ``steps`` steps; returns their mean loss."""
    total = torch.zeros(())
    with progress_bar(name, steps * batch_size, disable=dist.get_rank() != 0) as bar:
        for taken in range(1, steps + 1):
            loss, _, _ = pipeline.progress(batches)
            schedule.step()
            total = total.to(loss.device) + loss
            if taken % 20 == 0 or taken == steps:
                bar.set_postfix_str(f"loss {total.item() / taken:.4f}", refresh=False)
            bar.update(batch_size)
    return total.item() / steps


def _aucs(rows: Rows) -> str:
    values = [r["value"] for r in rows if r["metric"] == "auc" and r["space"] == "impressions"]
    return " / ".join(f"{value:.4f}" for value in values)


def _say(text: str) -> None:
    if dist.get_rank() == 0:
        print(text, flush=True)
