"""Predictions of all ranks, measured."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from torchrec_mtl.errors import InputError
from torchrec_mtl.metrics import MultiTaskMetrics, suspicious
from torchrec_mtl.tasks import TaskChain

Rows = list[dict[str, Any]]


def evaluate(
    model: nn.Module, batches: Iterable[Any], tasks: TaskChain, device: torch.device, group: str | None = None
) -> MultiTaskMetrics:
    """Collects the predictions of ``model`` for this rank's batches; ``compute()`` then measures all ranks'.

    Args:
        model: a `MultiTaskTrain`, distributed or not.
        batches: this rank's part of the split; as many on every rank, and of the same sizes.
        tasks: the funnel.
        device: where the model runs.
        group: the single-valued sparse feature whose ids group rows for GAUC, if any.

    Returns:
        The metrics, to be computed by every rank.
    """
    metrics = MultiTaskMetrics(tasks, with_groups=group is not None)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for batch in batches:
            batch = batch.to(device)
            _, (_, logits, labels) = model(batch)
            groups = None if group is None else batch.sparse_features[group].values()
            metrics.update(logits.float(), labels, batch.weights, groups)
    model.train(was_training)
    return metrics


def mean_auc(rows: Rows) -> float:
    """The mean of the tasks' AUCs over all impressions, of those that are defined: what early stopping goes by.

    Raises:
        InputError: if no task has both positives and negatives.
    """
    values = [r["value"] for r in rows if r["metric"] == "auc" and r["space"] == "impressions"]
    defined = [value for value in values if not math.isnan(value)]
    if not defined:
        raise InputError("the validation split must have positives and negatives of at least one task")
    return sum(defined) / len(defined)


def suspicions(rows: Rows) -> list[str]:
    """What `suspicious` says of the tasks' AUCs over all impressions, by task.

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
    }
    return [f"{task}: {text}" for task, text in told.items() if text]
