"""Predictions of all ranks, measured."""

import math
from collections.abc import Iterable
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from torchrec_mtl.errors import InputError
from torchrec_mtl.metrics import MultiTaskMetrics, suspicious
from torchrec_mtl.tasks import TaskChain

Rows = list[dict[str, Any]]


def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    tasks: TaskChain,
    device: torch.device,
    groups: Iterable[Tensor] | None = None,
) -> MultiTaskMetrics:
    """Collects the predictions of ``model`` for this rank's batches; ``compute()`` then measures all ranks'.

    Args:
        model: a `MultiTaskTrain`, distributed or not.
        batches: this rank's part of the split; as many on every rank, and of the same sizes.
        tasks: the funnel.
        device: where the model runs.
        groups: of each batch, the integers ``[B]`` that group its rows for GAUC, those of padded rows left out; if
            any.

    Returns:
        The metrics, to be computed by every rank.
    """
    metrics = MultiTaskMetrics(tasks, with_groups=groups is not None)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for batch, of_batch in zip(batches, repeat(None) if groups is None else groups, strict=False):
            batch = batch.to(device)
            _, (_, logits, labels) = model(batch)
            if of_batch is not None:  # padded rows are of no group, but their weight is 0
                of_batch = pad(of_batch, (0, len(labels) - len(of_batch))).to(device)
            metrics.update(logits.float(), labels, batch.weights, of_batch)
    model.train(was_training)
    return metrics


def aucs(rows: Rows) -> list[float]:
    """The tasks' AUCs over all impressions, NaN where one is undefined."""
    return [r["value"] for r in rows if r["metric"] == "auc" and r["space"] == "impressions"]


def mean_auc(rows: Rows) -> float:
    """The mean of the tasks' AUCs over all impressions, of those that are defined: what early stopping goes by.

    Raises:
        InputError: if no task has both positives and negatives.
    """
    defined = [value for value in aucs(rows) if not math.isnan(value)]
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
