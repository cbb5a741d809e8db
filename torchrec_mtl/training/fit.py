"""The training loop: TorchRec's pipeline, validation, early stopping, checkpoints."""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist
from torchrec.optim.keyed import KeyedOptimizer

from torchrec_mtl.errors import InputError
from torchrec_mtl.metrics import METRICS, Metric
from torchrec_mtl.tasks import TaskForest
from torchrec_mtl.training.checkpoint import Checkpointer, best_checkpoint, load_weights
from torchrec_mtl.training.config import TrainingConfig
from torchrec_mtl.training.evaluation import by_task, early_stopping_metric, evaluate, mean_over_tasks, suspicions
from torchrec_mtl.training.faults import Recorded, tell_non_finite
from torchrec_mtl.training.monitor import Monitor, progress_bar
from torchrec_mtl.training.result import TrainingResult
from torchrec_mtl.training.step import NonFiniteLossError, Step


class Batches(Protocol):
    """An epoch of batches on this rank, as many and of the same sizes on all: `torchrec_mtl.data.BatchLoader`, say."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration is of; its first batch comes first, if it is another than before."""

    def state_dict(self) -> dict[str, Any]:
        """The position, ``epoch`` and ``step`` (batches of it handed out), and what else batches depend on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts the next iteration at a position; an `InputError` if the state is of other batches."""


def set_seed(seed: int) -> None:
    """Seeds Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def autocast(config: TrainingConfig, device: torch.device) -> AbstractContextManager[None]:
    """bf16 autocast if the run asks for it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


class Training:
    """A run of `fit`, whose arguments it takes."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: KeyedOptimizer,
        train_batches: Batches,
        valid_batches: Iterable[Any],
        tasks: TaskForest,
        config: TrainingConfig,
        device: torch.device,
        directory: Path,
        monitor: Monitor,
        description: str,
        stop_requested: Callable[[], bool],
        metrics: Mapping[str, Metric] = METRICS,
    ) -> None:
        self.metrics, self.chosen_by = metrics, early_stopping_metric(config, metrics)
        self.model, self.optimizer, self.device = model, optimizer, device
        self.train_batches, self.valid_batches, self.tasks = train_batches, valid_batches, tasks
        self.config, self.directory, self.monitor, self.description = config, directory, monitor, description
        self.steps_per_epoch = -(-len(train_batches) // config.micro_batches)
        self.interval = max(1, -(-self.steps_per_epoch // config.evaluations_per_epoch))
        self.agreement = dist.new_group(backend="gloo")
        self.checkpointer = Checkpointer(
            directory / "checkpoints",
            dist.new_group(backend="gloo"),
            config.checkpoint.keep_last,
            config.checkpoint.asynchronous,
        )
        self.result = TrainingResult()
        self._go_on()
        norm, self.num_steps = config.optimizer.max_gradient_norm, self.steps_per_epoch * config.max_epochs
        self.step = Step(model, optimizer, self.agreement, config.non_finite_loss, norm, stop_requested, self.num_steps)
        self.step.num_skipped = self.result.num_skipped
        first = self.result.step
        self.schedule = LambdaLR(optimizer, lambda step: self._rate(first + step))
        self.batches = Recorded(self._all_batches())  # one stream: pipelines fetch ahead
        self.pipeline: Any = (
            TrainPipelineSparseDist(model, self.step, device, custom_model_fwd=self.step)
            if device.type == "cuda"
            else TrainPipelineBase(self.step, self.step, device)
        )

    def _go_on(self) -> None:
        """From the newest checkpoint, if there is one."""
        checkpoint = self.checkpointer.latest()
        torch.manual_seed(self.config.seed + 1_000_003 * dist.get_rank())  # each rank's dropout is its own
        if checkpoint is None:
            return
        state = self.checkpointer.load(checkpoint, self.model, self.optimizer)
        try:
            self.train_batches.load_state_dict(state["data"])
        except InputError as error:
            raise InputError(f"{checkpoint}: {error}") from error
        self.result = TrainingResult(**state["result"])
        _say(f"{self.description}: goes on from {checkpoint}")

    def _rate(self, step: int) -> float:
        if self.config.learning_rate_decay == "linear":
            return max(0.0, 1 - step / self.num_steps)
        return 1.0

    def _all_batches(self) -> Iterator[Any]:
        for epoch in range(self.result.epoch, self.config.max_epochs):
            self.train_batches.set_epoch(epoch)
            yield from self.train_batches

    def is_over(self) -> bool:
        """Whether all epochs are done or validation has stopped improving."""
        return self.result.epoch >= self.config.max_epochs or self.result.without_gain >= self.config.patience

    def run(self) -> TrainingResult:
        """To the end, or until told to stop."""
        result = self.result
        self.monitor.start(result.step)
        while not self.is_over():
            self._run_to_evaluation()
            if self.step.stop:
                result.stopped = True
                self.checkpointer.wait()
                _say(f"{self.description}: told to stop, after step {result.step}")
                return result
        if result.without_gain >= self.config.patience:
            _say(f"{self.description}: no better for {result.without_gain} evaluations, stopped")
        self.checkpointer.wait()
        load_weights(self.model, best_checkpoint(self.directory / "checkpoints"), self.agreement)
        return result

    def _run_to_evaluation(self) -> None:
        """Takes steps up to the next evaluation, and evaluates; or up to where it is told to stop."""
        result, every = self.result, self.config.checkpoint.interval
        done = result.epoch_step % self.interval
        steps = min(self.interval, self.steps_per_epoch - result.epoch_step + done)
        name = f"{self.description} epoch {result.epoch + 1}/{self.config.max_epochs}"
        total = steps * self.config.batch_size
        with progress_bar(name, total, dist.get_rank() != 0, done * self.config.batch_size) as bar:
            for taken in range(done + 1, steps + 1):
                self.take_step()
                bar.update(self.config.batch_size)
                if taken % 20 == 0 or taken == steps:
                    bar.set_postfix_str(f"loss {self.step.mean_loss():.4f}", refresh=False)
                if taken < steps and (self.step.stop or (every and result.step % every == 0)):
                    self._save(None)
                if self.step.stop and taken < steps:
                    return
        self._evaluate(name)

    def take_step(self) -> None:
        """One optimizer step: all that a run does for it, but evaluations and checkpoints."""
        result, parts = self.result, self.config.micro_batches
        parts = min(parts, len(self.train_batches) - result.epoch_step * parts)
        began = time.perf_counter()
        for part in range(parts):
            with self.step.micro_batch(part, parts), autocast(self.config, self.device):
                try:
                    self.pipeline.progress(self.batches)
                except NonFiniteLossError as error:
                    batch = self.batches.batch(self.step.num_calls - 1)
                    step = result.step + 1
                    raise tell_non_finite(error, batch, step, self.tasks, self.directory, self.agreement) from None
        self.schedule.step()
        result.seconds += time.perf_counter() - began
        result.step += 1
        result.epoch_step += 1

    def _evaluate(self, name: str) -> None:
        self._take_loss()
        result = self.result
        loss = result.loss_sum / max(result.loss_rows, 1)
        result.loss_sum, result.loss_rows = 0.0, 0
        measured = evaluate(self.model, self.valid_batches, self.tasks, self.device, metrics=self.metrics)
        rows = [{"split": "valid", **row} for row in measured.compute()]
        metric, named = self.chosen_by, self.config.early_stopping_metric
        score = mean_over_tasks(rows, named)
        result.history += [{"step": result.step, **row} for row in rows]
        self.monitor.scalars(result.step, [{"split": "train", "metric": "loss", "value": loss}, *rows])
        skipped = f", {result.num_skipped} batches skipped" if result.num_skipped else ""
        values = " / ".join(f"{value:.4f}" for value in by_task(rows, named))
        told = f"validation {metric.title} {values}, mean {score:.4f}"
        _say(f"{name}, step {result.step}: loss {loss:.4f}, {told}{skipped}")
        for warning in suspicions(rows):
            _say(f"{name}: warning: {warning}")
        result.without_gain += 1
        if result.best_score is None or metric.merit(score) > metric.merit(result.best_score):
            result.best_score, result.best_step, result.without_gain = score, result.step, 0
        if result.epoch_step == self.steps_per_epoch:
            result.epoch, result.epoch_step = result.epoch + 1, 0
        self._save(metric.merit(score))

    def _take_loss(self) -> None:
        """Brings what the ranks have summed up since the last time into the result."""
        loss_sum, num_rows = self.step.take_sums()
        self.result.loss_sum += loss_sum
        self.result.loss_rows += num_rows
        self.result.num_rows += num_rows
        self.result.num_skipped = self.step.num_skipped

    def _save(self, merit: float | None) -> None:
        self._take_loss()
        # the loader itself is ahead: the pipeline reads batches before it uses them
        position = {"epoch": self.result.epoch, "step": self.result.epoch_step * self.config.micro_batches}
        state = {"result": asdict(self.result), "data": {**self.train_batches.state_dict(), **position}}
        self.checkpointer.save(self.result.step, self.model, self.optimizer, state, merit)

    def close(self) -> None:
        """After a run that came to its end on all ranks."""
        dist.destroy_process_group(self.agreement)
        dist.destroy_process_group(self.checkpointer.group)


def fit(
    model: nn.Module,
    optimizer: KeyedOptimizer,
    train_batches: Batches,
    valid_batches: Iterable[Any],
    tasks: TaskForest,
    config: TrainingConfig,
    device: torch.device,
    directory: Path,
    monitor: Monitor,
    description: str = "train",
    stop_requested: Callable[[], bool] = lambda: False,
    metrics: Mapping[str, Metric] = METRICS,
) -> TrainingResult:
    """Trains until validation stops improving, and leaves the best weights in the model.

    If ``directory`` holds checkpoints of the same run, it goes on from the newest: bit for bit on a CPU with as many
    ranks, with the same values on another number of them.

    Args:
        model: a `MultiTaskTrain`, distributed by `distribute`.
        optimizer: its optimizer.
        train_batches: this rank's part of every global batch, or of every micro-batch.
        valid_batches: this rank's part of the validation split.
        tasks: the funnel.
        config: the run.
        device: where the model runs.
        directory: where ``checkpoints/`` goes, a folder that all ranks see.
        monitor: takes loss and validation metrics.
        description: what the progress bar says.
        stop_requested: whether this rank was told to stop; asked at every step.
        metrics: what validation measures, by name; the config's ``early_stopping_metric`` is one of them.

    Returns:
        The validation history and the throughput; ``stopped`` if it was told to stop, after a checkpoint.

    Raises:
        TrainingError: if the loss is not finite, or a checkpoint cannot be written.
        InputError: before training, if ``early_stopping_metric`` names none of ``metrics``, or a checkpoint in
            ``directory`` is damaged or of another run.
    """
    training = Training(
        model,
        optimizer,
        train_batches,
        valid_batches,
        tasks,
        config,
        device,
        directory,
        monitor,
        description,
        stop_requested,
        metrics,
    )
    result = training.run()
    training.close()
    return result


def _say(text: str) -> None:
    if dist.get_rank() == 0:
        print(text, flush=True)
