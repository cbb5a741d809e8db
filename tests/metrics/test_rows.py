"""Rows that metrics are measured on: masked ones are left out, wrong ones raise."""

import math

import pytest
import torch

from torchrec_mtl.errors import InputError
from torchrec_mtl.metrics import auc
from torchrec_mtl.metrics.rows import checked_rows

SCORES, LABELS = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 0.0])


def test_masked_rows_are_left_out_whatever_their_label() -> None:
    labels, weights = torch.tensor([0.0, math.nan, -1.0]), torch.tensor([0.5, 0.0, 0.0])
    rows = checked_rows(SCORES, labels, weights)
    assert [column.tolist() for column in rows] == [[1.0], [0.0], [0.5]]
    assert (rows.labels.dtype, rows.weights.dtype) == (torch.float64, torch.float64)


@pytest.mark.parametrize("label", [0.5, -1.0, 2.0, math.nan])
def test_labels_other_than_0_and_1_raise(label: float) -> None:
    with pytest.raises(InputError, match=rf"^`labels` must be 0 or 1, but entry \[2\] is {label}$"):
        auc(SCORES, torch.tensor([0.0, 1.0, label]))


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_weights_that_are_negative_or_not_finite_raise(weight: float) -> None:
    sentence = rf"^`weights` must be finite and not negative, but entry \[0\] is {weight}$"
    with pytest.raises(InputError, match=sentence):
        auc(SCORES, LABELS, torch.tensor([weight, 1.0, 1.0]))


def test_different_shapes_raise() -> None:
    with pytest.raises(InputError, match=r"^`labels` must have shape \[3\], not \[2\]$"):
        auc(SCORES, LABELS[:2])
    with pytest.raises(InputError, match=r"^`weights` must have shape \[3\], not \[3, 1\]$"):
        auc(SCORES, LABELS, torch.ones(3, 1))
    with pytest.raises(InputError, match=r"^`scores` must have one dimension, not shape \[3, 1\]$"):
        auc(SCORES[:, None], LABELS[:, None])
