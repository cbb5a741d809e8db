"""Metrics of the predictions of all ranks."""

import math
from collections.abc import Iterable, Mapping
from itertools import repeat
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import pad

from torchrec_mtl.errors import InputError, TrainingError
from torchrec_mtl.metrics import METRICS, Metric, MultiTaskMetrics, find_metric, suspicious
from torchrec_mtl.tasks import TaskForest
from torchrec_mtl.training.hang import going_on
from torchrec_mtl.training.scenes import SceneMetrics

Measurements = list[dict[str, Any]]


def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    tasks: TaskForest,
    device: torch.device,
    groups: Iterable[Tensor] | None = None,
    metrics: Mapping[str, Metric] = METRICS,
    description: str = "evaluation",
    scenes: SceneMetrics | None = None,
) -> MultiTaskMetrics:
    """Collects the predictions of ``model`` for this rank's batches; ``compute()`` then measures all ranks together.

    Args:
        model: `MultiTaskTrain`, distributed or not.
        batches: this rank's part of the split; all ranks need the same number of batches, of the same sizes. From
            page-locked memory a batch is copied to CUDA without a wait.
        tasks: funnel of tasks.
        device: device of the model.
        groups: integers ``[B]`` that group the rows of each batch for GAUC, padded rows left out; None for no groups.
        metrics: metrics to measure, by name.
        description: model, step and split, for the error.
        scenes: collects the rows of each scene too; it takes groups if there are any.

    Returns:
        The metrics; every rank must call ``compute()``.

    Raises:
        TrainingError: on every rank, if a logit of any rank is NaN or infinite.
    """
    collected = MultiTaskMetrics(tasks, groups is not None, metrics)
    was_training = model.training
    not_finite = torch.zeros(tasks.num_outputs + 1, dtype=torch.int64)  # rows of each output, and all rows
    model.eval()
    with torch.no_grad():
        for batch, of_batch in zip(batches, repeat(None) if groups is None else groups, strict=False):
            _, (_, on_device, _) = model(batch.to(device, non_blocking=True))
            logits = on_device.float().cpu()  # the host's only wait for the device
            if of_batch is not None:  # padded rows get group 0, but their weight is 0
                of_batch = pad(of_batch, (0, len(logits) - len(of_batch)))
            not_finite += pad(bad := ~logits.isfinite(), (0, 1), value=True).sum(0)
            if not bad.any():
                collected.update(logits, batch.labels, batch.weights, of_batch)
                if scenes is not None:
                    scenes.update(batch.sparse_features, logits, batch.labels, batch.weights, of_batch)
            going_on()
    model.train(was_training)
    _check_finite(not_finite.to(device), tasks, description)
    return collected


def _check_finite(not_finite: Tensor, tasks: TaskForest, description: str) -> None:
    """Raises `TrainingError` on every rank if a row of any rank counts in ``not_finite``, ``[L + 1]``."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(not_finite)
    *of_outputs, num_rows = not_finite.tolist()
    counts = [max(of_outputs[columns]) for columns in tasks.outputs]
    where = [f"{task} in {n} of {num_rows} rows" for task, n in zip(tasks, counts, strict=True) if n]
    if where:
        raise TrainingError(
            f"{description}: logits of {', '.join(where)} are not finite; in few rows, look for huge dense features; "
            "in most, the parameters overflowed: take lower learning rates or limit `optimizer.max_gradient_norm`, and "
            "another name"
        )


class NamesMetric(Protocol):
    """Settings that name the metric by which validation chooses, such as a `TrainingConfig`."""

    @property
    def early_stopping_metric(self) -> str:
        """Name of the metric."""


def early_stopping_metric(config: NamesMetric, metrics: Mapping[str, Metric] = METRICS) -> Metric:
    """The metric by which validation chooses the best weights.

    Raises:
        InputError: if ``config`` names a metric that is not in ``metrics``, or one that needs groups, which validation
            does not have.
    """
    return find_metric(config.early_stopping_metric, metrics, "early_stopping_metric", with_groups=False)


def by_task(rows: Measurements, metric: str) -> list[float]:
    """The value of ``metric`` over all impressions for each task, NaN where it is undefined."""
    return [row["value"] for row in rows if (row["metric"], row["space"]) == (metric, "impressions")]


def mean_over_tasks(rows: Measurements, metric: str) -> float:
    """The mean over the tasks of `by_task`, without undefined values. Early stopping compares these means.

    Raises:
        InputError: if the metric is undefined for every task.

    Example::

        >>> rows = [{"task": t, "space": "impressions", "metric": "auc", "value": v}
        ...         for t, v in [("click", 0.6), ("buy", 0.8), ("return", math.nan)]]
        >>> mean_over_tasks(rows, "auc")
        0.7
    """
    defined = [value for value in by_task(rows, metric) if not math.isnan(value)]
    if not defined:
        raise InputError(
            f"the validation split must have positives and negatives of a task for `{metric}` to be defined"
        )
    return sum(defined) / len(defined)


def suspicions(rows: Measurements) -> list[str]:
    """Warnings of `suspicious` about the tasks' AUCs over all impressions; none where AUC is not measured.

    Example::

        >>> measured = {"auc": 0.999, "num_rows": 900.0, "positives": 90.0}
        >>> suspicions([{"task": "buy", "space": "impressions", "metric": m, "value": v} for m, v in measured.items()])
        ['buy: AUC 0.9990 (90 positives, 810 negatives) is nearly perfect: a feature may give the label away']
    """
    measured: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["space"] == "impressions":
            measured.setdefault(row["task"], {})[row["metric"]] = row["value"]
    warnings = {
        task: suspicious(values["auc"], values["positives"], values["num_rows"] - values["positives"])
        for task, values in measured.items()
        if "auc" in values
    }
    return [f"{task}: {text}" for task, text in warnings.items() if text]
