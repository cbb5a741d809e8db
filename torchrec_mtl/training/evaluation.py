"""Predictions of all ranks, measured."""

import math
from collections.abc import Iterable, Mapping
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from torchrec_mtl.errors import InputError
from torchrec_mtl.metrics import METRICS, Metric, MultiTaskMetrics, find_metric, suspicious
from torchrec_mtl.tasks import TaskForest
from torchrec_mtl.training.config import TrainingConfig

Measurements = list[dict[str, Any]]


def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    tasks: TaskForest,
    device: torch.device,
    groups: Iterable[Tensor] | None = None,
    metrics: Mapping[str, Metric] = METRICS,
) -> MultiTaskMetrics:
    """Collects the predictions of ``model`` for this rank's batches; ``compute()`` then measures all ranks'.

    Args:
        model: a `MultiTaskTrain`, distributed or not.
        batches: this rank's part of the split; as many on every rank, and of the same sizes.
        tasks: the funnel.
        device: where the model runs.
        groups: of each batch, the integers ``[B]`` that group its rows for GAUC, those of padded rows left out; if
            any.
        metrics: what is measured, by name.

    Returns:
        The metrics, to be computed by every rank.
    """
    collected = MultiTaskMetrics(tasks, groups is not None, metrics)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for batch, of_batch in zip(batches, repeat(None) if groups is None else groups, strict=False):
            batch = batch.to(device)
            _, (_, logits, labels) = model(batch)
            if of_batch is not None:  # padded rows are of no group, but their weight is 0
                of_batch = pad(of_batch, (0, len(labels) - len(of_batch))).to(device)
            collected.update(logits.float(), labels, batch.weights, of_batch)
    model.train(was_training)
    return collected


def early_stopping_metric(config: TrainingConfig, metrics: Mapping[str, Metric] = METRICS) -> Metric:
    """What validation chooses the best weights by.

    Raises:
        InputError: if ``config`` names none of ``metrics``, or one that needs groups, which validation is without.
    """
    return find_metric(config.early_stopping_metric, metrics, "early_stopping_metric", with_groups=False)


def by_task(rows: Measurements, metric: str) -> list[float]:
    """The tasks' values of ``metric`` over all impressions, NaN where one is undefined."""
    return [row["value"] for row in rows if (row["metric"], row["space"]) == (metric, "impressions")]


def mean_over_tasks(rows: Measurements, metric: str) -> float:
    """The mean of what `by_task` gives, of those that are defined: what early stopping goes by.

    Raises:
        InputError: if it is defined for no task.

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
    """What `suspicious` says of the tasks' AUCs over all impressions, by task; nothing where AUC is not measured.

    Example::

        >>> measured = {"auc": 0.999, "num_rows": 900.0, "positives": 90.0}
        >>> suspicions([{"task": "buy", "space": "impressions", "metric": m, "value": v} for m, v in measured.items()])
        ['buy: AUC 0.9990 (90 positives, 810 negatives) is nearly perfect: a feature may give the label away']
    """
    measured: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["space"] == "impressions":
            measured.setdefault(row["task"], {})[row["metric"]] = row["value"]
    told = {
        task: suspicious(values["auc"], values["positives"], values["num_rows"] - values["positives"])
        for task, values in measured.items()
        if "auc" in values
    }
    return [f"{task}: {text}" for task, text in told.items() if text]
