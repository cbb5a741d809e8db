"""Measures named metrics of every task in every sample space of the task."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError, check_at_least
from torchrec_mtl.kinds import Classes, Quantile
from torchrec_mtl.metrics.metric import METRICS, Metric, measured_as
from torchrec_mtl.metrics.probability import (
    CalibrationCurve,
    binned,
    conditional_logits,
    curve_over_ranks,
    log_conditional,
)
from torchrec_mtl.metrics.ranks import Ranks
from torchrec_mtl.metrics.rows import (
    check_groups,
    check_shape,
    check_value_columns,
    check_values,
    checked_rows,
    checked_values,
)
from torchrec_mtl.modules.heads import log_probabilities, predicted
from torchrec_mtl.tasks import TaskForest


class MultiTaskMetrics:
    """Collects rows batch by batch, then measures each task in each of its sample spaces.

    It takes logits of *marginal* probabilities ``p_t = P(y_t = 1 | x)``, which every model here returns. The spaces are
    ``tasks.spaces(name)``, and the meaning of a metric depends on the space:

    - ``"impressions"``: all rows. Ranking and probability metrics both use ``p_t``. For a purchase after a click this
      is CTCVR.
    - ``"after <previous>"``: the rows whose previous label is 1 and not masked.

    After a step, *probability* metrics (here ``log_loss``, ``normalized_entropy`` and ``calibration``) use the
    conditional ``min(p_t / p_{t-1}, 1)`` of :func:`conditional_logits`, because the labels after a step follow it;
    ``p_t`` would be off by the rate of the previous step.

    After a step, *ranking* metrics (``auc`` and ``gauc``) are measured twice, under the names of :func:`measured_as`.
    ``conditional_auc`` ranks by :func:`log_conditional`: it is the "CVR AUC" of ESMM and ESCM2, and no model beats the
    true probabilities except by chance. ``marginal_auc`` ranks by ``p_t``, as candidates are ranked before the previous
    step is known; the true model need not be the best by it.

    ``share_above_previous`` is the share of the rows on which the model puts ``p_t`` above ``p_{t-1}``, which cannot
    be: there, the quotient is no probability.

    A row whose label of a task has weight 0 is left out of that task. ``num_rows``, ``positives`` and
    ``share_above_previous`` count the remaining rows, unweighted. Logits and weights are kept in float32 on the CPU:
    ``9 T`` bytes per row, and 8 more for its group.

    Tasks that are values have metrics of their kind, see `Metric.score`. ``"after <previous>"`` has the prediction and
    the label as they are. ``"impressions"`` has what a row is worth: ``p_{t-1}`` times the prediction, and the label
    or, where the previous step did not happen, 0. A quantile after a step is measured only there, with its coverage:
    the share of rows whose label is at most the quantile, which should be its level.

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
        ...     if row["metric"].endswith(("auc", "num_rows")):
        ...         print(*row.values())
        click impressions num_rows 3.0
        click impressions auc 1.0
        purchase impressions num_rows 3.0
        purchase impressions auc 1.0
        purchase after click num_rows 2.0
        purchase after click conditional_auc 1.0
        purchase after click marginal_auc 1.0
    """

    @checked
    def __init__(self, tasks: TaskForest, with_groups: bool = False, metrics: Mapping[str, Metric] = METRICS) -> None:
        self.tasks = tasks
        self.with_groups = with_groups
        self.metrics = {name: metric for name, metric in metrics.items() if with_groups or not metric.grouped}
        for name, metric in self.metrics.items():
            for measured in measured_as(name, metric, "after"):
                if measured != name and measured in self.metrics:
                    raise InputError(f"`metrics` (={measured!r}) must not have the name of {name!r} after a step")
        self.reset()

    def reset(self) -> None:
        """Forgets all rows."""
        none, values = torch.empty(0, len(self.tasks)), torch.empty(0, len(self.tasks.values))
        groups = [torch.empty(0, dtype=torch.int64)] if self.with_groups else []
        empty = [torch.empty(0, self.tasks.num_outputs), none.bool(), none, values, *groups]
        self._batches = [empty]  # so that a rank without rows has columns

    @checked
    def update(
        self, logits: Tensor, labels: Tensor, weights: Tensor | None = None, groups: Tensor | None = None
    ) -> None:
        """Appends a batch.

        Args:
            logits: ``[B, T]`` marginal logits; of tasks that are values, the outputs: ``[B, L]``.
            labels: ``[B, T]`` in {0, 1}, or values.
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
        tasks, first = self.tasks, len(self.tasks.funnel)
        check_shape(logits, (*logits.shape[:1], tasks.num_outputs), "logits")
        check_shape(labels, (len(logits), len(tasks)), "labels")
        logits = logits.detach().to("cpu", torch.float32, copy=True)
        labels = labels.detach().cpu()
        ones = torch.ones(labels.shape, dtype=torch.float32)
        weights = ones if weights is None else weights.detach().to(logits, copy=True)
        check_shape(weights, tuple(labels.shape), "weights")
        check_values(logits[:, :first], labels[:, :first], weights[:, :first], "logits")
        for place, task in enumerate(tasks.values, first):
            counts = tasks.counted(place, labels == 1, weights > 0)
            check_value_columns(task.kind, logits[:, tasks.outputs[place]], labels[:, place], weights[:, place], counts)
        batch = [logits, labels == 1, weights, labels[:, first:].to(torch.float32, copy=True)]
        if groups is not None:
            check_groups(groups, len(logits))
            batch.append(groups.to("cpu", torch.int64, copy=True))
        self._batches.append(batch)

    def compute(self, process_group: dist.ProcessGroup | None = None) -> list[dict[str, Any]]:
        """Measures the rows of all ranks; every rank gets all results.

        If torch.distributed is initialised, all ranks of the group must call it, including ranks without rows. A rank
        receives only what it measures: of an AUC an even share of the rows, those of one range of scores; of a GAUC
        all rows of its groups; of a metric without ``parts`` all rows of the space. Nothing is rounded or binned for
        that. However the rows are spread over ranks, counts are the same to the last bit, and so are AUCs unless
        weights are fractional. The other metrics are sums in float64 and agree to 1e-12.

        Args:
            process_group: group of the ranks whose rows are merged; the default group by default.

        Returns:
            A list of dicts ``{task, space, metric, value}``; ``value`` is a float, NaN where the metric is undefined
            (one class absent).

        Raises:
            InputError: if no rank has a row.
        """
        ranks = Ranks(process_group)
        rows = self._rows(ranks)
        return [
            {"task": task, "space": space, "metric": metric, "value": value}
            for t, task in enumerate(self.tasks)
            for space in self.tasks.spaces(task)
            for metric, value in self._measure(rows, t, space, ranks).items()
        ]

    @checked
    def calibration_curves(
        self, process_group: dist.ProcessGroup | None = None, num_bins: int = 10
    ) -> dict[str, CalibrationCurve]:
        """Returns each task's :func:`calibration_curve` over all impressions of all ranks; call it like ``compute``.

        Of a value it is the :func:`value_curve`; of quantiles there is none.
        """
        check_at_least(1, num_bins=num_bins)
        ranks = Ranks(process_group)
        logits, labels, weights, *_ = rows = self._rows(ranks)
        curves = {
            task: curve_over_ranks(checked_rows(logits[:, t], labels[:, t], weights[:, t]), num_bins, ranks.sum)
            for t, task in enumerate(self.tasks.funnel)
        }
        for t, task in enumerate(self.tasks.values, len(self.tasks.funnel)):
            if task.kind.has_mean:
                predictions, values, weight, _ = self._value_columns(rows, t, entire=True)
                checked = checked_values(predictions[:, 0], values, weight)
                curves[task.name] = binned(checked, checked.scores, num_bins, ranks.sum)
        return curves

    def _rows(self, ranks: Ranks) -> list[Tensor]:
        """Returns the columns of this rank."""
        columns = [torch.cat(column) for column in zip(*self._batches, strict=True)]
        if not ranks.sum(torch.tensor(len(columns[0]))):
            raise InputError("metrics of no rows are undefined: `update` must come before them")
        return columns

    def _measure(self, rows: list[Tensor], t: int, space: str, ranks: Ranks) -> dict[str, float]:
        """Returns the metrics of task ``t`` over the rows of all ranks in ``space``."""
        if not self.tasks.tasks[t].is_binary:
            return self._measure_value(rows, t, space, ranks)
        before, after_a_step = self.tasks.parents[t], space != "impressions"
        kept = rows[2][:, t] > 0
        if after_a_step:
            kept = kept & rows[1][:, before] & (rows[2][:, before] > 0)
        marginal, happened, weights = (column[kept, t] for column in rows[:3])
        groups, labels = [column[kept] for column in rows[4:]], happened.float()
        scores = {"ranking": [marginal], "probability": [marginal]}
        above = torch.zeros(())
        if before is not None:
            previous = rows[0][kept, before]
            above = (marginal > previous).sum()
            if after_a_step:
                scores["ranking"].insert(0, log_conditional(marginal, previous))
                scores["probability"] = [conditional_logits(marginal, previous)]
        counts = ranks.sum(torch.tensor([len(labels), happened.sum(), above], dtype=torch.float64))
        num_rows, positives, num_above = counts.tolist()
        values = {"num_rows": num_rows, "positives": positives}
        if before is not None:
            values["share_above_previous"] = num_above / num_rows if num_rows else math.nan
        for name, metric in self._metrics_of(t).items():
            for measured, score in zip(measured_as(name, metric, space), scores[metric.score], strict=True):
                columns = (score, labels, *(groups if metric.grouped else ()), weights)
                values[measured] = _over(ranks, metric, columns) if num_rows else math.nan
        return values

    def _metrics_of(self, t: int) -> dict[str, Metric]:
        scores = self.tasks.tasks[t].kind.scores
        return {name: metric for name, metric in self.metrics.items() if metric.score in scores}

    def _measure_value(self, rows: list[Tensor], t: int, space: str, ranks: Ranks) -> dict[str, float]:
        """Returns the metrics of task ``t``, a value, over the rows of all ranks in ``space``."""
        kind, last = self.tasks.tasks[t].kind, space == self.tasks.spaces(self.tasks.names[t])[-1]
        if not (kind.has_mean or last):
            return {}
        predictions, labels, weights, kept = self._value_columns(rows, t, entire=not last)
        groups = [column[kept] for column in rows[4:]]
        num_rows = float(ranks.sum(torch.tensor(len(labels), dtype=torch.float64)))
        values = {"num_rows": num_rows}
        if isinstance(kind, Quantile):
            below = (labels[:, None] <= predictions).sum(0).double()
            shares = (ranks.sum(below) / num_rows).tolist() if num_rows else [math.nan] * kind.num_outputs
            values |= {f"coverage_{level:g}": share for level, share in zip(kind.levels, shares, strict=True)}
            levels = torch.tensor(kind.levels, dtype=torch.float64).expand(len(labels), -1)
            predictions = torch.stack([predictions.double(), levels], dim=2).flatten(0, 1)
            labels, weights = (column.repeat_interleave(kind.num_outputs) for column in (labels, weights))
        elif kind.has_mean:
            predictions = predictions[:, 0]
        for name, metric in self._metrics_of(t).items():
            columns = (predictions, labels, *(groups if metric.grouped else ()), weights)
            values[name] = _over(ranks, metric, columns) if num_rows else math.nan
        return values

    def _value_columns(self, rows: list[Tensor], t: int, entire: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns predictions ``[N, P]``, labels and weights ``[N]`` of task ``t``, and the rows they are of.

        Over the entire space it is what a row is worth, otherwise what it is worth where the step before happened.
        """
        logits, happened, weights, values, *_ = rows
        task, before = self.tasks.tasks[t], self.tasks.parents[t]
        known = weights > 0
        counts, weight, label = (
            self.tasks.counted(t, happened, known),
            weights[:, t],
            values[:, t - len(self.tasks.funnel)],
        )
        outputs = logits[:, self.tasks.outputs[t]].double()
        kind = task.kind
        predictions = log_probabilities(kind, outputs) if isinstance(kind, Classes) else predicted(kind, outputs)
        if before is not None and entire:
            not_happened = known[:, before] & ~happened[:, before]
            weight, label = torch.where(counts, weight, weights[:, before]), torch.where(counts, label, 0.0)
            counts = counts | not_happened
            predictions = predictions * logits[:, before, None].double().sigmoid()
        return predictions[counts], label[counts], weight[counts], counts


def _over(ranks: Ranks, metric: Metric, columns: Sequence[Tensor]) -> float:
    """Returns the metric of the rows of all ranks."""
    if ranks.size == 1:
        return metric.function(*columns)
    if metric.parts is None:
        return metric.function(*ranks.gather(columns))
    return metric.parts.over(ranks, *columns)
