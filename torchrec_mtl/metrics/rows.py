"""The rows a metric is measured on: checked, and without those that a weight of 0 masks."""

from typing import NamedTuple

from torch import Tensor

from torchrec_mtl.errors import InputError


class Rows(NamedTuple):
    """Scores in their own type, labels and weights in float64, all ``[N]`` and all of weight above 0."""

    scores: Tensor
    labels: Tensor
    weights: Tensor


def _refuse(wrong: Tensor, values: Tensor, name: str, rule: str) -> None:
    if wrong.any():
        entry = wrong.nonzero()[0].tolist()
        raise InputError(f"`{name}` must be {rule}, but entry {entry} is {values[tuple(entry)].item()}")


def check_shape(values: Tensor, shape: tuple[int, ...], name: str) -> None:
    """Raises InputError unless ``values`` has the ``shape``."""
    if values.shape != shape:
        raise InputError(f"`{name}` must have shape {list(shape)}, not {list(values.shape)}")


def check_groups(groups: Tensor, num_rows: int) -> None:
    """Raises InputError unless ``groups`` are ``num_rows`` ids; a float loses digits of ids above 2^24."""
    check_shape(groups, (num_rows,), "groups")
    if groups.is_floating_point():
        raise InputError(f"`groups` must be integer ids, not {groups.dtype}")


def check_values(scores: Tensor, labels: Tensor, weights: Tensor | None, name: str) -> None:
    """Raises InputError unless scores (called ``name``) are finite, weights finite and >= 0, labels 0 or 1.

    Labels and weights have the shape of the scores. A label of weight 0 may hold anything.
    """
    check_shape(labels, tuple(scores.shape), "labels")
    _refuse(~scores.isfinite(), scores, name, "finite")
    not_binary = (labels != 0) & (labels != 1)
    if weights is not None:
        check_shape(weights, tuple(scores.shape), "weights")
        _refuse(~(weights.isfinite() & (weights >= 0)), weights, "weights", "finite and not negative")
        not_binary &= weights != 0
    _refuse(not_binary, labels, "labels", "0 or 1")


def checked_rows(scores: Tensor, labels: Tensor, weights: Tensor | None, name: str = "scores") -> Rows:
    """The rows of weight above 0, after ``check_values``; ``weights`` of None are 1."""
    if scores.dim() != 1:
        raise InputError(f"`{name}` must have one dimension, not shape {list(scores.shape)}")
    check_values(scores, labels, weights, name)
    if weights is None:
        labels = labels.double()
        return Rows(scores, labels, labels.new_ones(labels.shape))
    kept = weights != 0
    return Rows(scores[kept], labels[kept].double(), weights[kept].double())
