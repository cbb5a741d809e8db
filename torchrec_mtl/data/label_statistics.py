"""What the labels of a split are: the base rates of events, the mean and deviation of values."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchrec_mtl.data.lists import Array
from torchrec_mtl.kinds import Classes
from torchrec_mtl.modules.heads import LabelStatistics
from torchrec_mtl.tasks import TaskForest


@dataclass
class Moments:
    """Number, mean and squared deviations of numbers that come in parts (Chan et al., 1979)."""

    number: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: Array) -> None:
        """Counts further values ``[N]``."""
        if not len(values):
            return
        values = values.astype(np.float64)
        number, mean = self.number + len(values), float(values.mean())
        apart = mean - self.mean
        self.squares += float(((values - mean) ** 2).sum()) + apart**2 * self.number * len(values) / number
        self.mean += apart * len(values) / number
        self.number = number

    @property
    def deviation(self) -> float:
        """The standard deviation; of equal values their size, or 1 where they are 0: it is a unit, so never 0."""
        found = math.sqrt(self.squares / self.number) if self.number else 0.0
        return found or abs(self.mean) or 1.0


class LabelCounts:
    """Counts the labels of a split, part by part. A label of weight 0 is left out; other weights do not count.

    Args:
        tasks: the ``T`` tasks.

    Example::

        >>> from torchrec_mtl.kinds import ZILN
        >>> from torchrec_mtl.tasks import Task
        >>> counts = LabelCounts(TaskForest(Task("buy"), Task("spend", after="buy", kind=ZILN())))
        >>> counts.add(np.array([[1, 3.0], [1, 9.0], [0, 0.0], [0, 0.0]]))
        >>> counts.base_rates(), counts.values()["spend"].mean
        (tensor([0.5000]), 6.0)
    """

    def __init__(self, tasks: TaskForest) -> None:
        self._tasks, self._num_events = tasks, len(tasks.funnel)
        self._positives = self._known = np.zeros(self._num_events)
        self._moments = {task.name: (Moments(), Moments()) for task in tasks.values}
        self._classes = {
            task.name: np.zeros(task.kind.num_classes, np.int64)
            for task in tasks.values
            if isinstance(task.kind, Classes)
        }

    def add(self, labels: Array, weights: Array | None = None) -> None:
        """Counts labels ``[N, T]``, with weights ``[N, T]`` or 1."""
        known = np.full(labels.shape, True) if weights is None else weights > 0
        events = slice(self._num_events)
        self._positives = self._positives + ((labels == 1) & known)[:, events].sum(0)
        self._known = self._known + known[:, events].sum(0)
        for place, (task, (of_all, of_logs)) in enumerate(self._moments.items(), self._num_events):
            values = labels[self._tasks.counted(place, labels == 1, known), place]
            of_all.add(values)
            of_logs.add(np.log(values[values > 0].astype(np.float64)))
            if task in self._classes:
                self._classes[task] += np.bincount(values.astype(np.int64), minlength=len(self._classes[task]))

    def base_rates(self) -> Tensor:
        """The share of positives among the known labels of each task that happens or does not; NaN without any."""
        return (torch.as_tensor(self._positives) / torch.as_tensor(self._known)).float()

    def values(self) -> dict[str, LabelStatistics]:
        """The statistics of each task that is a value."""
        found = {}
        for task, (of_all, of_logs) in self._moments.items():
            of_classes = tuple(self._classes[task].tolist()) if task in self._classes else ()
            logs = of_logs.number, of_logs.mean, of_logs.deviation
            found[task] = LabelStatistics(of_all.number, of_all.mean, of_all.deviation, *logs, of_classes)
        return found
