"""Rows of a funnel, their metrics, and a lookup of the results."""

import torch
from torch import Tensor

from torchrec_mtl import TaskChain
from torchrec_mtl.metrics import MultiTaskMetrics

TASKS = TaskChain(["click", "cart", "purchase"])


def funnel(num_rows: int = 1000) -> dict[str, Tensor]:
    """Rows of three tasks: tied logits, some with p_t above p_{t-1}; a tenth of the labels is masked."""
    generator = torch.Generator().manual_seed(3)
    logits = (torch.randn(num_rows, 3, generator=generator) * 4).round() / 4 - torch.tensor([0.0, 1.0, 2.0])
    labels = (torch.rand(num_rows, 3, generator=generator) < (logits / 2 + 1.5).sigmoid()).float().cumprod(1)
    weights = torch.rand(num_rows, 3, generator=generator) + 0.5
    weights[torch.rand(num_rows, 3, generator=generator) < 0.1] = 0
    labels[weights == 0] = -1
    return {
        "logits": logits,
        "labels": labels,
        "weights": weights,
        "groups": torch.randint(0, 40, (num_rows,), generator=generator),
    }


def collect(rows: dict[str, Tensor], batch_size: int = 128) -> MultiTaskMetrics:
    metrics = MultiTaskMetrics(TASKS, with_groups=True)
    for batch in zip(*(column.split(batch_size) for column in rows.values()), strict=True):
        metrics.update(*batch)
    return metrics


def by_name(results: list[dict[str, object]]) -> dict[tuple[object, ...], object]:
    """Each value by its task, space and metric."""
    named = {(row["task"], row["space"], row["metric"]): row["value"] for row in results}
    assert len(named) == len(results)
    return named
