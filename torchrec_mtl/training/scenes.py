"""Metrics of each scene apart: of the rows of each id of a field, such as the page or the app."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.metrics import METRICS, Metric, MultiTaskMetrics
from torchrec_mtl.metrics.ranks import Ranks
from torchrec_mtl.tasks import TaskForest


class SceneMetrics:
    """Collects rows batch by batch, then measures those of each scene as `MultiTaskMetrics` measures all.

    Args:
        field: field whose ids are the scenes, at most one in a row.
        num_scenes: number of ids.
        tasks, with_groups, metrics: see `MultiTaskMetrics`.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> scenes = SceneMetrics("page", 3, TaskChain(["click"]))
        >>> pages = KeyedJaggedTensor.from_lengths_sync(["page"], torch.tensor([2, 0, 2, 2]), torch.ones(4).int())
        >>> labels = torch.tensor([[1.0], [0.0], [1.0], [0.0]])
        >>> scenes.update(pages, torch.tensor([[0.5], [0.1], [0.2], [0.3]]), labels)
        >>> [(row["scene"], row["value"]) for row in scenes.compute() if row["metric"] == "auc"]
        [(0, nan), (2, 0.5)]
    """

    @checked
    def __init__(
        self,
        field: str,
        num_scenes: int,
        tasks: TaskForest,
        with_groups: bool = False,
        metrics: Mapping[str, Metric] = METRICS,
    ) -> None:
        self.field = field
        self.of_scenes = [MultiTaskMetrics(tasks, with_groups, metrics) for _ in range(num_scenes)]
        self.num_rows = torch.zeros(num_scenes, dtype=torch.int64)

    def update(
        self,
        sparse_features: KeyedJaggedTensor,
        logits: Tensor,
        labels: Tensor,
        weights: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> None:
        """Appends a batch: its ids, on any device, and otherwise what `MultiTaskMetrics.update` takes.

        Rows without an id of the field, such as padding, are left out.
        """
        of_field = sparse_features[self.field]
        lengths, ids = of_field.lengths().cpu(), of_field.values().cpu()
        with_id = lengths.nonzero().flatten()
        columns = (logits, labels, weights, groups)
        for scene in ids.unique().tolist():
            rows = with_id[ids == scene]
            self.of_scenes[scene].update(*(None if each is None else each[rows] for each in columns))
            self.num_rows[scene] += len(rows)

    def compute(self) -> list[dict[str, Any]]:
        """Rows ``{scene, task, space, metric, value}`` of each scene that a rank has rows of; all ranks call it."""
        found = Ranks().sum(self.num_rows).nonzero().flatten().tolist()
        return [{"scene": scene, **row} for scene in found for row in self.of_scenes[scene].compute()]
