"""Logits that are not finite, on one of several ranks."""

import pytest
import torch
import torch.distributed as dist

from tests import processes
from tests.support import TASKS, batch, train_model
from torchrec_mtl.data import MultiTaskBatch
from torchrec_mtl.errors import TrainingError
from torchrec_mtl.metrics import MultiTaskMetrics
from torchrec_mtl.training.evaluation import evaluate

CPU = torch.device("cpu")


def _one_rank_has_bad_rows() -> None:
    batches = [batch(8, seed=dist.get_rank()), batch(8, seed=9)]
    if dist.get_rank() == 1:
        batches[0].dense_features[3] = float("inf")
    with pytest.raises(TrainingError, match=r"^MMoE, step 7: logits of \w+ in 1 of 32 rows.* are not finite"):
        evaluate(train_model("mmoe"), batches, TASKS, CPU, description="MMoE, step 7")


def test_logits_of_one_rank_that_are_not_finite_end_all_ranks():
    processes.run(_one_rank_has_bad_rows, 2)


def test_batches_are_copied_without_a_wait_and_measured_where_they_were(monkeypatch):
    asked, measured = [], []
    to, update = MultiTaskBatch.to, MultiTaskMetrics.update

    def copied(self, device, non_blocking=False):
        asked.append(non_blocking)
        return to(self, device, non_blocking)

    def noted(self, logits, labels, weights=None, groups=None):
        measured.append((labels, weights))
        update(self, logits, labels, weights, groups)

    monkeypatch.setattr(MultiTaskBatch, "to", copied)
    monkeypatch.setattr(MultiTaskMetrics, "update", noted)
    batches = [batch(8, seed, weighted=True) for seed in (0, 1)]
    evaluate(train_model("mmoe"), batches, TASKS, CPU)
    assert asked == [True, True]
    assert all(found[0] is given.labels for found, given in zip(measured, batches, strict=True))
    assert all(found[1] is given.weights for found, given in zip(measured, batches, strict=True))
