"""Scores a day with the model of the day before, and trains on it from that model's state."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from torchrec_mtl.data import BatchLoader, Split
from torchrec_mtl.jobs.build import build_model, build_to_train
from torchrec_mtl.jobs.run_config import RunConfig
from torchrec_mtl.jobs.single_run import EVALUATION_BATCH_SIZE
from torchrec_mtl.metrics import METRICS, Metric
from torchrec_mtl.training import MultiTaskTrain
from torchrec_mtl.training.checkpoint import Checkpointer
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.evaluation import Measurements, evaluate
from torchrec_mtl.training.loop import TrainingLoop
from torchrec_mtl.training.monitor import Monitor, progress_bar
from torchrec_mtl.training.process_group import gloo_group, on_every_rank, set_seed


class DayModel:
    """A model as the day before left it, or a new one; all ranks make one and make the same calls.

    Args:
        config: settings of the run.
        day: the day to be trained on.
        split: rows of the day, as they are scored or, on the first day, trained on.
        before: folder of the day before; None on the first day.
        device: device of this rank.

    Raises:
        InputError: if the model cannot be built, or the checkpoint of the day before is damaged.
    """

    def __init__(self, config: RunConfig, day: date, split: Split, before: Path | None, device: torch.device) -> None:
        # each day has its order of rows, whatever days the command names
        self.training = replace(config.training, seed=config.training.seed + day.toordinal())
        self.config, self.device, self.title = config, device, f"{config.system.title}, {day}"
        set_seed(config.training.seed)
        build = build_to_train if before is None else _build
        model = on_every_rank(lambda: build(config, split, device))
        self.reads_groups = "groups" in model.of_batch
        self.model, self.optimizer = distribute(model, config.training, device)
        if before is not None:
            group = gloo_group()
            saved = Checkpointer(before / config.name / "checkpoints", group)
            newest = saved.latest()
            assert newest is not None  # a published day has one
            saved.load(newest, self.model, self.optimizer)
            dist.destroy_process_group(group)

    def _of_rank(self) -> dict[str, Any]:
        pin_memory = self.device.type == "cuda"
        of_rank = {"rank": dist.get_rank(), "world_size": dist.get_world_size(), "pin_memory": pin_memory}
        return {**of_rank, "with_groups": self.reads_groups}

    def score(self, split: Split, metrics: Mapping[str, Metric] = METRICS) -> Measurements:
        """Returns the figures ``{task, space, metric, value}`` of the model on rows that it has not been trained on.

        Raises:
            TrainingError: if a logit is not finite.
        """
        batches = BatchLoader(split, EVALUATION_BATCH_SIZE, **self._of_rank())
        tasks, where = split.schema.tasks, f"{self.title}, scored by the day before"
        measured: Measurements = evaluate(
            self.model, batches, tasks, self.device, batches.groups(), metrics, where
        ).compute()
        return measured

    def train(self, split: Split, directory: Path, stop_requested: Callable[[], bool]) -> float | None:
        """Trains on the rows of the day and leaves a checkpoint in ``directory``.

        Returns:
            The mean loss; None if a rank was asked to stop, and there is no checkpoint.

        Raises:
            TrainingError: if the loss is not finite, or the checkpoint cannot be written.
        """
        training, of_rank = self.training, self._of_rank()
        batches = BatchLoader(
            split,
            training.batch_size // (of_rank["world_size"] * training.micro_batches),
            shuffle=True,
            seed=training.seed,
            shuffle_window=training.shuffle_window or None,
            negative_rate=training.negative_rate,
            **of_rank,
        )
        loop = TrainingLoop(
            self.model,
            self.optimizer,
            batches,
            (),
            split.schema.tasks,
            training,
            self.device,
            directory,
            Monitor(None),
            self.title,
            stop_requested,
        )
        with progress_bar(self.title, loop.num_steps * training.batch_size, of_rank["rank"] != 0) as bar:
            while loop.result.step < loop.num_steps and not loop.step.stop:
                loop.take_step()
                if loop.result.epoch_step == loop.steps_per_epoch:
                    loop.result.epoch_step = 0
                bar.update(training.batch_size)
        loss_sum, num_rows = loop.step.take_sums()
        if stopped := loop.result.step < loop.num_steps:
            loop.checkpointer.wait()
        else:
            state = {"day": split.schema.notes["day"]}
            # with a score, as readers take the checkpoint that has the best one
            loop.checkpointer.save(loop.result.step, self.model, self.optimizer, state, 0.0)
            loop.checkpointer.wait()
        loop.close()
        return None if stopped else loss_sum / max(num_rows, 1)


def _build(config: RunConfig, split: Split, device: torch.device) -> MultiTaskTrain:
    return build_model(config, split.schema, device)
