"""The result of a run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torchrec_mtl.training.evaluation import Measurements


def with_nan(rows: Measurements) -> Measurements:
    """Rows read from JSON, where an undefined value is null."""
    return [{**row, "value": math.nan if row["value"] is None else row["value"]} for row in rows]


@dataclass
class TrainingResult:
    """The result of a run so far; with the tensors of a checkpoint, it is all that is needed to resume.

    Args:
        history: validation rows ``{step, split, task, space, metric, value}``, in order.
        best_step: optimizer step with the best weights.
        best_score: early stopping metric of those weights on validation, see `mean_over_tasks`; None before the first
            evaluation.
        seconds: seconds of training, without evaluation and checkpoints.
        num_rows: number of training rows used, over all ranks.
        num_skipped: number of batches skipped because their loss was not finite.
        epoch, epoch_step: present epoch, and number of optimizer steps taken in it.
        step: number of optimizer steps taken.
        without_gain: number of evaluations since the best one.
        loss_sum, loss_rows: sum of the losses, and number of rows, since the last evaluation.
        recorded_sum, recorded_rows: those of them that are in the record of the run.
        stopped: whether the run was asked to stop before its end.
    """

    history: Measurements = field(default_factory=list)
    best_step: int = 0
    best_score: float | None = None
    seconds: float = 0.0
    num_rows: int = 0
    num_skipped: int = 0
    epoch: int = 0
    epoch_step: int = 0
    step: int = 0
    without_gain: int = 0
    loss_sum: float = 0.0
    loss_rows: int = 0
    recorded_sum: float = 0.0
    recorded_rows: int = 0
    stopped: bool = False

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> "TrainingResult":
        """The result that was written as JSON."""
        return cls(**{**kept, "history": with_nan(kept["history"])})

    @property
    def samples_per_second(self) -> float:
        """Training rows of all ranks per second of training."""
        return self.num_rows / self.seconds if self.seconds else 0.0
