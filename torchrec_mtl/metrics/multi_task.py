"""Measures named metrics of every task in every sample space of the task."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from torchrec_mtl.errors import InputError
from torchrec_mtl.metrics.metric import METRICS, Metric
from torchrec_mtl.metrics.probability import CalibrationCurve, calibration_curve, conditional_logits
from torchrec_mtl.metrics.rows import check_groups, check_shape, check_values, gather_rows
from torchrec_mtl.tasks import TaskForest


class MultiTaskMetrics:
    """Collects rows batch by batch, then measures each task in each of its sample spaces.

    It takes logits of *marginal* probabilities ``p_t = P(y_t = 1 | x)``, which every model here returns. The spaces are
    ``tasks.spaces(name)``, and the meaning of a metric depends on the space:

    - ``"impressions"``: all rows. Ranking and probability metrics both use ``p_t``. For a purchase after a click this
      is CTCVR.
    - ``"after <previous>"``: the rows whose previous label is 1 and not masked. Probability metrics use the conditional
      probability, ranking metrics use ``p_t``.

    *Probability* metrics (here ``log_loss``, ``normalized_entropy`` and ``calibration``) use the conditional
    ``min(p_t / p_{t-1}, 1)`` of :func:`conditional_logits`, because the labels after a step follow it; ``p_t`` would be
    off by the rate of the previous step.

    *Ranking* metrics (``auc`` and ``gauc``) use ``p_t`` for three reasons. Candidates are ranked before the previous
    step is known, so ``p_t`` is the score that ranks them. A score is the same in both spaces, so a difference between
    the spaces comes from their rows alone. And the quotient of two outputs is tied wherever a model puts ``p_t`` above
    ``p_{t-1}``. The AUC of a conversion rate model as such is
    ``auc(conditional_logits(logits[:, t], logits[:, t - 1]), labels[:, t])`` over the clicked rows.

    A row whose label of a task has weight 0 is left out of that task. ``num_rows`` and ``positives`` count the
    remaining rows, unweighted. Logits and weights are kept in float32 on the CPU: ``9 T`` bytes per row, and 8 more for
    its group.

    Args:
        tasks: the ``T`` tasks of the funnel.
        with_groups: whether ``update`` takes groups and ``compute`` measures the grouped metrics, such as ``gauc``.
        metrics: metrics to measure, by name.

    Example::

        >>> from torchrec_mtl.tasks import TaskChain
        >>> metrics = MultiTaskMetrics(TaskChain(["click", "purchase"]))
        >>> metrics.update(
        ...     logits=torch.tensor([[2.0, 0.0], [1.0, -1.0], [-1.0, -3.0]]),
        ...     labels=torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]),
        ... )
        >>> for row in metrics.compute():
        ...     if row["metric"] in ("auc", "num_rows"):
        ...         print(*row.values())
        click impressions num_rows 3.0
        click impressions auc 1.0
        purchase impressions num_rows 3.0
        purchase impressions auc 1.0
        purchase after click num_rows 2.0
        purchase after click auc 1.0
    """

    def __init__(self, tasks: TaskForest, with_groups: bool = False, metrics: Mapping[str, Metric] = METRICS) -> None:
        self.tasks = tasks
        self.with_groups = with_groups
        self.metrics = {name: metric for name, metric in metrics.items() if with_groups or not metric.grouped}
        self.reset()

    def reset(self) -> None:
        """Forgets all rows."""
        none = torch.empty(0, len(self.tasks))
        groups = [torch.empty(0, dtype=torch.int64)] if self.with_groups else []
        self._batches = [[none, none.bool(), none, *groups]]  # so that a rank without rows has columns

    def update(
        self, logits: Tensor, labels: Tensor, weights: Tensor | None = None, groups: Tensor | None = None
    ) -> None:
        """Appends a batch.

        Args:
            logits: ``[B, T]`` marginal logits.
            labels: ``[B, T]`` in {0, 1}.
            weights: ``[B, T]``, at least 0; 0 masks the label. 1 by default.
            groups: ``[B]`` integer ids for grouped metrics; given only if ``with_groups`` is True.

        Raises:
            InputError: if a logit is NaN or infinite, an unmasked label is neither 0 nor 1, a weight is negative or not
                finite, a shape is wrong, or ``groups`` are given although ``with_groups`` is False, or missing although
                it is True.
        """
        if (groups is not None) != self.with_groups:
            given = "not given" if groups is None else "given"
            raise InputError(f"`groups` are {given}, but `with_groups` is {self.with_groups}")
        check_shape(logits, (*logits.shape[:1], len(self.tasks)), "logits")
        logits = logits.detach().to("cpu", torch.float32, copy=True)
        labels = labels.detach().cpu()
        weights = torch.ones_like(logits) if weights is None else weights.detach().to(logits, copy=True)
        check_values(logits, labels, weights, "logits")
        batch = [logits, labels == 1, weights]
        if groups is not None:
            check_groups(groups, len(logits))
            batch.append(groups.to("cpu", torch.int64, copy=True))
        self._batches.append(batch)

    def compute(self, process_group: dist.ProcessGroup | None = None) -> list[dict[str, Any]]:
        """Measures the rows of all ranks; every rank gets all results.

        If torch.distributed is initialised, all ranks of the group must call it, including ranks without rows. Each
        rank receives all rows before anything is summarised, so AUCs are exact. However the rows are spread over ranks,
        counts are the same to the last bit, and so are AUCs unless weights are fractional. The other metrics are sums
        in float64 and agree to 1e-12.

        Args:
            process_group: group of the ranks whose rows are merged; the default group by default.

        Returns:
            A list of dicts ``{task, space, metric, value}``; ``value`` is a float, NaN where the metric is undefined
            (one class absent).

        Raises:
            InputError: if no rank has a row.
        """
        rows = self._all_rows(process_group)
        return [
            {"task": task, "space": space, "metric": metric, "value": value}
            for t, task in enumerate(self.tasks)
            for space, values in zip(self.tasks.spaces(task), self._measure_spaces(rows, t), strict=True)
            for metric, value in values.items()
        ]

    def calibration_curves(
        self, process_group: dist.ProcessGroup | None = None, num_bins: int = 10
    ) -> dict[str, CalibrationCurve]:
        """Returns each task's :func:`calibration_curve` over all impressions of all ranks; call it like ``compute``."""
        logits, labels, weights, *_ = self._all_rows(process_group)
        return {
            task: calibration_curve(logits[:, t], labels[:, t], weights[:, t], num_bins)
            for t, task in enumerate(self.tasks)
        }

    def _all_rows(self, process_group: dist.ProcessGroup | None) -> list[Tensor]:
        columns = [torch.cat(column) for column in zip(*self._batches, strict=True)]
        rows = gather_rows(columns, process_group)
        if not len(rows[0]):
            raise InputError("metrics of no rows are undefined: `update` must come before them")
        return rows

    def _measure_spaces(self, rows: list[Tensor], t: int) -> Iterator[dict[str, float]]:
        """Yields the metrics of task ``t`` over all its rows, then over the rows where the previous step happened."""
        logits, _, weights = (column[:, t] for column in rows[:3])
        labelled = weights > 0
        yield self._measure(rows, t, logits, labelled)
        before = self.tasks.parents[t]
        if before is not None:
            logits_before, happened, weights_before = (column[:, before] for column in rows[:3])
            after = labelled & happened & (weights_before > 0)
            yield self._measure(rows, t, conditional_logits(logits, logits_before), after)

    def _measure(self, rows: list[Tensor], t: int, logits: Tensor, kept: Tensor) -> dict[str, float]:
        """Returns the metrics of task ``t`` over the rows ``kept``; probability metrics read ``logits``."""
        marginal, happened, weights = (column[kept, t] for column in rows[:3])
        groups = [column[kept] for column in rows[3:]]
        values = {"num_rows": float(len(happened)), "positives": float(happened.sum())}
        scores, labels = {"ranking": marginal, "probability": logits[kept]}, happened.float()
        for name, metric in self.metrics.items():
            columns = (scores[metric.score], labels, *(groups if metric.grouped else ()), weights)
            values[name] = metric.function(*columns) if len(labels) else math.nan
        return values
