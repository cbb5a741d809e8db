"""What came of a run."""

from dataclasses import dataclass, field

from torchrec_mtl.training.evaluation import Measurements


@dataclass
class TrainingResult:
    """What came of a run, or has come of it so far: with the checkpoint's tensors, all that is needed to go on.

    Args:
        history: validation rows ``{step, split, task, space, metric, value}``, in order.
        best_step: the optimizer step whose weights are the best.
        best_score: their early stopping metric on validation, as `mean_over_tasks` has it; None before the first one.
        seconds: of training, evaluation and checkpoints left out.
        num_rows: training rows taken, over all ranks.
        num_skipped: batches left out because their loss was not finite.
        epoch, epoch_step: the present epoch, and optimizer steps taken in it.
        step: optimizer steps taken.
        without_gain: evaluations since the best.
        loss_sum, loss_rows: of the rows since the last evaluation.
        stopped: whether the run was told to stop before its end.
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
    stopped: bool = False

    @property
    def samples_per_second(self) -> float:
        """Training rows per second of training, over all ranks."""
        return self.num_rows / self.seconds if self.seconds else 0.0
