"""Tasks without a positive or without a negative row: they are named before training, and the others are trained."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from torchrec_mtl.data import Split, StreamedSplit
from torchrec_mtl.tasks import TaskForest


def absent_classes(splits: Mapping[str, Split | StreamedSplit], directory: str | Path) -> list[str]:
    """A sentence for each task and split of the data set in ``directory`` that lacks positives or negatives.

    Rows whose weight for the task is 0 do not count.
    """
    sentences = []
    for name, split in splits.items():
        file = split.source if isinstance(split, StreamedSplit) else Path(directory) / f"{name}.parquet"
        so = "the task cannot be learned, the others are trained" if name == "train" else "its AUC is undefined there"
        for task, rate in zip(split.schema.tasks.funnel, split.base_rates().tolist(), strict=True):
            if not 0 < rate < 1:  # true for NaN, the share of no rows
                absent = {0: "positive", 1: "negative"}.get(rate, "labelled")
                sentences.append(f"{file}: task {task!r} has no {absent} row in {name}: {so}")
        for task, found in split.value_statistics().items() if split.schema.tasks.values else ():
            if not found.num_rows:
                so = so.replace("AUC", "error")
                sentences.append(f"{file}: task {task!r} has no row with a value in {name}: {so}")
    return sentences


def usable_base_rates(rates: Tensor, tasks: TaskForest) -> Tensor:
    """Shares of positives ``[T]`` from which any model can start: one that is 0, 1 or NaN is replaced by the middle
    between that of the task it needs (or 1) and the highest usable one of the tasks after it (or 0).

    Example::

        >>> from torchrec_mtl.tasks import Task
        >>> usable_base_rates(torch.tensor([0.5, 0.0]), TaskForest(Task("click"), Task("buy", after="click")))
        tensor([0.5000, 0.2500])
    """
    usable = rates.clone()
    for task, parent in enumerate(tasks.parents):
        if not 0 < rates[task] < 1:
            above = torch.tensor(1.0) if parent is None else usable[parent]
            after = [rates[t] for t in range(len(tasks)) if task in tasks.ancestors(t) and 0 < rates[t] < 1]
            usable[task] = (above + max(after, default=torch.tensor(0.0))) / 2
    return usable
