"""The rows that a metric is measured on: checked, and without the rows that weight 0 masks."""

from typing import NamedTuple

import torch
from torch import Tensor

from torchrec_mtl.errors import InputError
from torchrec_mtl.kinds import Kind


class WeightedRows(NamedTuple):
    """Scores in their original type, labels and weights in float64, all ``[N]``; every weight is above 0."""

    scores: Tensor
    labels: Tensor
    weights: Tensor


def _raise_if(wrong: Tensor, values: Tensor, name: str, rule: str) -> None:
    if wrong.any():
        entry = wrong.nonzero()[0].tolist()
        raise InputError(f"`{name}` must be {rule}, but entry {entry} is {values[tuple(entry)].item()}")


def check_shape(values: Tensor, shape: tuple[int, ...], name: str) -> None:
    """Raises InputError unless ``values`` has the given ``shape``."""
    if values.shape != shape:
        raise InputError(f"`{name}` must have shape {list(shape)}, not {list(values.shape)}")


def check_groups(groups: Tensor, num_rows: int) -> None:
    """Raises InputError unless ``groups`` are ``num_rows`` integer ids; float32 would round ids above 2^24."""
    check_shape(groups, (num_rows,), "groups")
    if groups.is_floating_point():
        raise InputError(f"`groups` must be integer ids, not {groups.dtype}")


def check_values(scores: Tensor, labels: Tensor, weights: Tensor | None, name: str) -> None:
    """Raises InputError unless scores (called ``name``) are finite, weights finite and >= 0, and labels 0 or 1.

    Labels and weights must have the shape of the scores. A label of weight 0 may hold any value.
    """
    check_shape(labels, tuple(scores.shape), "labels")
    _raise_if(~scores.isfinite(), scores, name, "finite")
    not_binary = (labels != 0) & (labels != 1)
    if weights is not None:
        check_shape(weights, tuple(scores.shape), "weights")
        _raise_if(~(weights.isfinite() & (weights >= 0)), weights, "weights", "finite and not negative")
        not_binary &= weights != 0
    _raise_if(not_binary, labels, "labels", "0 or 1")


def check_value_columns(kind: Kind, outputs: Tensor, labels: Tensor, weights: Tensor, counts: Tensor) -> None:
    """Raises InputError unless outputs ``[N, num_outputs]`` are finite, weights ``[N]`` finite and >= 0, and the labels
    ``[N]`` that ``counts`` says are what their kind allows."""
    _raise_if(~outputs.isfinite(), outputs, "logits", "finite")
    _raise_if(~(weights.isfinite() & (weights >= 0)), weights, "weights", "finite and not negative")
    _raise_if(counts & ~kind.allows(labels), labels, "labels", kind.rule.removeprefix("must be "))


def checked_rows(scores: Tensor, labels: Tensor, weights: Tensor | None, name: str = "scores") -> WeightedRows:
    """Checks the values and returns the rows of weight above 0; without ``weights``, every weight is 1."""
    if scores.dim() != 1:
        raise InputError(f"`{name}` must have one dimension, not shape {list(scores.shape)}")
    check_values(scores, labels, weights, name)
    if weights is None:
        labels = labels.double()
        return WeightedRows(scores, labels, labels.new_ones(labels.shape))
    kept = weights != 0
    return WeightedRows(scores[kept], labels[kept].double(), weights[kept].double())


def checked_values(
    predictions: Tensor, labels: Tensor, weights: Tensor | None = None, num_columns: int | None = None
) -> WeightedRows:
    """As `checked_rows`, for values ``[N]``, which are any finite numbers, and predictions ``[N]`` of them.

    ``num_columns`` is that of predictions that are ``[N, num_columns]``.
    """
    if labels.dim() != 1:
        raise InputError(f"`labels` must have one dimension, not shape {list(labels.shape)}")
    check_shape(predictions, (len(labels), *(() if num_columns is None else (num_columns,))), "predictions")
    weights = torch.ones_like(labels, dtype=torch.float64) if weights is None else weights
    check_shape(weights, tuple(labels.shape), "weights")
    _raise_if(~(weights.isfinite() & (weights >= 0)), weights, "weights", "finite and not negative")
    kept = weights != 0
    rows = WeightedRows(predictions[kept], labels[kept].double(), weights[kept].double())
    _raise_if(~rows.scores.isfinite(), rows.scores, "predictions", "finite")
    _raise_if(~rows.labels.isfinite(), rows.labels, "labels", "finite")
    return rows
