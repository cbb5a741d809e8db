"""The training loop: TorchRec's pipeline, validation, early stopping, checkpoints."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torchrec.optim.keyed import KeyedOptimizer

from torchrec_mtl.errors import InputError
from torchrec_mtl.metrics import METRICS, Metric
from torchrec_mtl.tasks import TaskForest
from torchrec_mtl.training.checkpoint import Checkpointer, checkpoint_of, load_weights
from torchrec_mtl.training.config import TrainingConfig
from torchrec_mtl.training.evaluation import (
    Measurements,
    by_task,
    early_stopping_metric,
    evaluate,
    mean_over_tasks,
    suspicions,
)
from torchrec_mtl.training.faults import non_finite_loss_report, non_finite_rows
from torchrec_mtl.training.hang import going_on
from torchrec_mtl.training.monitor import Monitor, print_line, progress_bar
from torchrec_mtl.training.pipeline import chosen_pipeline, detach, make_pipeline
from torchrec_mtl.training.process_group import gloo_group, on_first_rank
from torchrec_mtl.training.result import TrainingResult
from torchrec_mtl.training.step import NonFiniteLossError, Step
from torchrec_mtl.training.stream import Batches, BatchStream


class TrainingLoop:
    """Trains until validation stops improving; `run` leaves the best weights in the model.

    If ``directory`` holds checkpoints of the same run, the loop resumes from the newest one: bit for bit on a CPU with
    the same number of ranks, with the same values on another number of ranks. All ranks make a loop and run it.

    Args:
        model: `MultiTaskTrain`, distributed by `distribute`.
        optimizer: optimizer that `distribute` returned with it.
        train_batches: this rank's part of every global batch, or of every micro-batch.
        valid_batches: this rank's part of the validation split.
        tasks: funnel of tasks.
        config: settings of the run.
        device: device of the model.
        directory: folder, visible to all ranks, in which ``checkpoints/`` is made.
        monitor: receiver of losses and validation metrics.
        description: name of the run in messages and the progress bar.
        stop_requested: function that says whether this rank should stop; called at every step.
        metrics: metrics that validation measures, by name; ``config.early_stopping_metric`` is one of them.

    Raises:
        InputError: if ``early_stopping_metric`` is not in ``metrics``, ``pipeline`` needs sharded tables and there are
            none, or a checkpoint in ``directory`` is damaged or belongs to another run.
    """

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
        description: str = "train",
        stop_requested: Callable[[], bool] = lambda: False,
        metrics: Mapping[str, Metric] = METRICS,
    ) -> None:
        self.metrics, self.chosen_by = metrics, early_stopping_metric(config, metrics)
        pipeline = chosen_pipeline(config.pipeline, model, device)
        self.model, self.optimizer, self.device = model, optimizer, device
        self.train_batches, self.valid_batches, self.tasks = train_batches, valid_batches, tasks
        self.config, self.directory, self.monitor, self.description = config, directory, monitor, description
        self.steps_per_epoch = -(-len(train_batches) // config.micro_batches)
        self.num_steps = self.steps_per_epoch * config.max_epochs
        self.interval = max(1, -(-self.steps_per_epoch // config.evaluations_per_epoch))
        self.agreement = gloo_group()
        self.checkpointer = Checkpointer(
            directory / "checkpoints",
            gloo_group(),
            config.checkpoint.keep_last,
            config.checkpoint.asynchronous,
        )
        self.result = self._resume()
        self.step = Step(
            model,
            optimizer,
            self.agreement,
            config.non_finite_loss,
            config.optimizer.max_gradient_norm,
            stop_requested,
            self.num_steps,
            config.max_consecutive_skips,
            self._print_skip,
        )
        self.step.num_skipped = self.result.num_skipped
        first = self.result.step
        self.schedule = LambdaLR(optimizer, lambda step: self._rate(first + step))
        self.batches = BatchStream(train_batches, range(self.result.epoch, config.max_epochs))
        self.pipeline = make_pipeline(pipeline, self.step, device)

    def _resume(self) -> TrainingResult:
        """Restores the newest checkpoint, if there is one, and returns what the run has done so far."""
        checkpoint = self.checkpointer.latest()
        torch.manual_seed(self.config.seed + 1_000_003 * dist.get_rank())  # each rank draws its own dropout
        if checkpoint is None:
            return TrainingResult()
        state = self.checkpointer.load(checkpoint, self.model, self.optimizer)
        try:
            self.train_batches.load_state_dict(state["data"])
        except InputError as error:
            raise InputError(f"{checkpoint}: {error}") from error
        _print_once(f"{self.description}: resumes from {checkpoint}")
        return TrainingResult.from_json(state["result"])

    def _rate(self, step: int) -> float:
        if self.config.learning_rate_decay == "linear":
            return max(0.0, 1 - step / self.num_steps)
        return 1.0

    def is_over(self) -> bool:
        """Whether all epochs are done or validation has stopped improving."""
        return self.result.epoch >= self.config.max_epochs or self.result.without_gain >= self.config.patience

    def run(self) -> TrainingResult:
        """Trains to the end, or until a rank is asked to stop, which leaves a checkpoint and sets ``stopped``.

        Raises:
            TrainingError: if the loss is not finite, or a checkpoint cannot be written.
        """
        result = self.result
        on_first_rank(lambda: self.monitor.start(result.step))
        while not (self.is_over() or result.stopped):
            self._train_epoch()
            result.stopped = self.step.stop
        self.checkpointer.wait()
        if result.stopped:
            _print_once(f"{self.description}: asked to stop, after step {result.step}")
        else:
            if result.without_gain >= self.config.patience:
                _print_once(f"{self.description}: no better for {result.without_gain} evaluations, stopped")
            load_weights(self.model, checkpoint_of(self.checkpointer.directory, result.best_step), self.agreement)
        self.close()
        return result

    def _train_epoch(self) -> None:
        """Takes the steps of an epoch that are left; returns early if the run is over or a rank is asked to stop."""
        result, config = self.result, self.config
        epoch, rows, total = result.epoch, config.batch_size, self.steps_per_epoch * config.batch_size
        name = f"{self.description} epoch {epoch + 1}/{config.max_epochs}"
        with progress_bar(name, total, dist.get_rank() != 0, result.epoch_step * rows) as bar:
            while result.epoch == epoch and not (self.step.stop or self.is_over()):
                self.take_step()
                bar.update(rows)
                if result.epoch_step % self.interval == 0 or result.epoch_step == self.steps_per_epoch:
                    self._evaluate(name)
                    continue
                if result.step % 20 == 0:
                    bar.set_postfix_str(f"loss {self.step.mean_loss():.4f}", refresh=False)
                if config.log_interval and result.step % config.log_interval == 0:
                    self._record([])
                if self.step.stop or (config.checkpoint.interval and result.step % config.checkpoint.interval == 0):
                    self._save(None)

    def take_step(self) -> None:
        """Takes one optimizer step: everything a run does for a step except evaluation and checkpoints."""
        result, parts = self.result, self.config.micro_batches
        parts = min(parts, len(self.train_batches) - result.epoch_step * parts)
        began = time.perf_counter()
        for part in range(parts):
            autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")
            with self.step.micro_batch(part, parts), autocast:
                try:
                    self.pipeline.progress(self.batches)
                except NonFiniteLossError as error:
                    batch, step = self.batches.recent(self.step.num_calls - 1), result.step + 1
                    report = non_finite_loss_report(error, batch, step, self.tasks, self.directory, self.agreement)
                    raise report from None
        self.schedule.step()
        result.seconds += time.perf_counter() - began
        result.step += 1
        result.epoch_step += 1
        going_on()

    def _print_skip(self, error: NonFiniteLossError) -> None:
        where = non_finite_rows(error, self.batches.recent(self.step.num_calls - 1), self.tasks, self.agreement)
        _print_once(f"{self.description}, step {self.result.step + 1}: a batch is skipped, {where}")

    def _evaluate(self, name: str) -> None:
        result = self.result
        where = f"{self.description}, step {result.step}, validation split"
        detach(self.pipeline)
        measured = evaluate(self.model, self.valid_batches, self.tasks, self.device, None, self.metrics, where)
        rows = [{"split": "valid", **row} for row in measured.compute()]
        metric, metric_name = self.chosen_by, self.config.early_stopping_metric
        score = mean_over_tasks(rows, metric_name)
        result.history += [{"step": result.step, **row} for row in rows]
        self._record(rows)
        loss = result.loss_sum / max(result.loss_rows, 1)
        result.loss_sum, result.loss_rows, result.recorded_sum, result.recorded_rows = 0.0, 0, 0.0, 0
        skipped = f", {result.num_skipped} batches skipped" if result.num_skipped else ""
        values = " / ".join(f"{value:.4f}" for value in by_task(rows, metric_name))
        validation = f"validation {metric.title} {values}, mean {score:.4f}"
        _print_once(f"{name}, step {result.step}: loss {loss:.4f}, {validation}{skipped}")
        for warning in suspicions(rows):
            _print_once(f"{name}: warning: {warning}")
        result.without_gain += 1
        if result.best_score is None or metric.merit(score) > metric.merit(result.best_score):
            result.best_score, result.best_step, result.without_gain = score, result.step, 0
        if result.epoch_step == self.steps_per_epoch:
            result.epoch, result.epoch_step = result.epoch + 1, 0
        self._save(metric.merit(score))

    def _record(self, rows: Measurements) -> None:
        """Records the mean loss since the last record, and ``rows`` that were measured at this step."""
        self._collect_loss()
        result = self.result
        if num_rows := result.loss_rows - result.recorded_rows:
            loss = (result.loss_sum - result.recorded_sum) / num_rows
            rows = [{"split": "train", "metric": "loss", "value": loss}, *rows]
        result.recorded_sum, result.recorded_rows = result.loss_sum, result.loss_rows
        self.monitor.scalars(result.step, rows)

    def _collect_loss(self) -> None:
        """Adds the losses and rows of all ranks since the last call to the result."""
        loss_sum, num_rows = self.step.take_sums()
        self.result.loss_sum += loss_sum
        self.result.loss_rows += num_rows
        self.result.num_rows += num_rows
        self.result.num_skipped = self.step.num_skipped

    def _save(self, merit: float | None) -> None:
        self._collect_loss()
        # the loader's own position is ahead: the pipeline reads batches before it uses them
        position = {"epoch": self.result.epoch, "step": self.result.epoch_step * self.config.micro_batches}
        state = {"result": asdict(self.result), "data": {**self.train_batches.state_dict(), **position}}
        self.checkpointer.save(self.result.step, self.model, self.optimizer, state, merit)
        going_on()

    def close(self) -> None:
        """Takes the model out of the pipeline and frees the loop's process groups; `run` does so at its end."""
        detach(self.pipeline)
        dist.destroy_process_group(self.agreement)
        dist.destroy_process_group(self.checkpointer.group)


def _print_once(text: str) -> None:
    """Prints on the first rank."""
    if dist.get_rank() == 0:
        print_line(text)
