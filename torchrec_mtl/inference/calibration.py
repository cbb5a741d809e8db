"""Calibrates the steps of a funnel: each p(step | step before) is corrected, and multiplied up to p(step)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from torchrec_mtl.argument_types import check_fields, checked
from torchrec_mtl.data.lists import Array, as_array
from torchrec_mtl.errors import InputError, check_choice
from torchrec_mtl.files import read_json, to_json, write_whole
from torchrec_mtl.inference.conditionals import conditional_log_odds, multiplied, sigmoid
from torchrec_mtl.tasks import TaskForest

METHODS = ("isotonic", "platt")
CALIBRATION_FILE = "calibration.json"
_NUM_STEPS = 100  # of Newton's method, which needs about ten


@dataclass(frozen=True)
class Calibration:
    """Maps of each task's p(step | step before), fitted on rows where the step before happened.

    Calibrated conditionals are multiplied up the funnel, so p(child) <= p(parent) holds for every row.

    Args:
        tasks: the ``T`` tasks.
        method: "isotonic" (a rising step function, linear between its steps) or "platt" (a line in log-odds).
        maps: for each task, by name: for "isotonic" log-odds ``x`` and probabilities ``y``, both rising; for "platt"
            ``slope`` and ``intercept``.

    Example::

        >>> from torchrec_mtl.tasks import TaskChain
        >>> halved = {"slope": 1.0, "intercept": float(np.log(0.5))}
        >>> calibration = Calibration(TaskChain(["click"]), "platt", {"click": halved})
        >>> calibration.apply(np.array([[0.0]])).round(3).tolist()
        [[0.333]]
    """

    tasks: TaskForest
    method: Literal["isotonic", "platt"]
    maps: Mapping[str, Mapping[str, Any]]

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice("method", self.method, METHODS)
        if list(self.maps) != list(self.tasks):
            raise InputError(f"`maps` (of {list(self.maps)}) must be of the tasks, {list(self.tasks)}")
        for name, fitted in self.maps.items():
            if not self._is_map(fitted):
                kind = "a finite `slope` and `intercept`" if self.method == "platt" else "rising `x`, and `y` of 0 to 1"
                raise InputError(f"`maps` of task {name!r} must have {kind}")

    def _is_map(self, fitted: Mapping[str, Any]) -> bool:
        keys = {"slope", "intercept"} if self.method == "platt" else {"x", "y"}
        try:
            values = [np.asarray(fitted[key], np.float64) for key in sorted(keys)]
        except (KeyError, TypeError, ValueError):
            return False
        if not all(np.isfinite(each).all() and each.ndim == (self.method == "isotonic") for each in values):
            return False
        if self.method == "platt":
            return True
        x, y = values
        rises = (np.diff(x) > 0).all() and (np.diff(y) >= 0).all()
        return bool(len(x) and len(x) == len(y) and rises and y[0] >= 0 and y[-1] <= 1)

    def apply(self, logits: Array) -> Array:
        """Maps marginal logits ``[N, T]`` to calibrated marginal probabilities ``[N, T]``, float64."""
        log_odds = conditional_log_odds(logits, self.tasks)
        conditionals = np.stack([self._map(name, log_odds[:, task]) for task, name in enumerate(self.tasks)], axis=1)
        return multiplied(conditionals, self.tasks)

    def _map(self, name: str, log_odds: Array) -> Array:
        fitted = self.maps[name]
        if self.method == "platt":
            return sigmoid(fitted["slope"] * log_odds + fitted["intercept"])
        return np.interp(log_odds, fitted["x"], fitted["y"])

    def save(self, folder: Path) -> None:
        """Writes ``calibration.json``."""
        write_whole(folder / CALIBRATION_FILE, to_json({"method": self.method, "maps": self.maps}) + "\n")

    @classmethod
    def load(cls, folder: Path, tasks: TaskForest) -> "Calibration | None":
        """Reads ``calibration.json``; None if there is none.

        Raises:
            InputError: if the file is damaged, or belongs to other tasks.
        """
        file = folder / CALIBRATION_FILE
        if not file.is_file():
            return None
        content = read_json(file)
        try:
            return cls(tasks, content["method"], content["maps"])
        except KeyError as error:
            raise InputError(f"{file}: key {error} is missing") from error
        except InputError as error:
            raise InputError(f"{file}: {error}") from error


@checked
def fit_calibration(
    logits: ArrayLike,
    labels: ArrayLike,
    tasks: TaskForest,
    method: Literal["isotonic", "platt"] = "isotonic",
    weights: ArrayLike | None = None,
) -> Calibration:
    """Fits a calibration, normally on the validation split.

    Args:
        logits: marginal logits ``[N, T]``.
        labels: labels ``[N, T]``, 0 or 1.
        tasks: the ``T`` tasks.
        method: "isotonic" for many positives, "platt" where a step has few (below some hundred). Isotonic probabilities
            stay half a row away from 0 and 1.
        weights: label weights ``[N, T]``, 1 by default; a label of weight 0 is left out.

    Raises:
        InputError: if a task lacks positives or negatives where the step before happened, or ``method`` is unknown.

    Example::

        >>> from torchrec_mtl.tasks import TaskChain
        >>> logits, labels = np.array([[2.0], [2.0], [-1.0], [-1.0]]), np.array([[1], [0], [0], [0]])
        >>> fit_calibration(logits, labels, TaskChain(["click"])).apply(logits).tolist()
        [[0.5], [0.5], [0.1], [0.1]]
    """
    check_choice("method", method, METHODS)
    logits, labels = as_array("logits", logits, np.float64), as_array("labels", labels, np.float64)
    weights = np.ones(labels.shape) if weights is None else as_array("weights", weights, np.float64)
    for name, given in (("logits", logits), ("labels", labels), ("weights", weights)):
        if given.ndim != 2 or given.shape != (len(logits), len(tasks)):
            rule = f"must be [N, {len(tasks)}], of the same N"
            raise InputError(f"`{name}` (of shape {list(given.shape)}) {rule}")
    if not (np.isfinite(logits).all() and np.isin(labels, (0, 1)).all()):
        raise InputError("`logits` must be finite, and `labels` 0 or 1")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise InputError("`weights` must be finite and at least 0")
    log_odds = conditional_log_odds(logits, tasks)
    maps: dict[str, Mapping[str, Any]] = {}
    for task, (name, parent) in enumerate(zip(tasks, tasks.parents, strict=True)):
        rows = weights[:, task] > 0
        if parent is not None:
            rows &= (labels[:, parent] == 1) & (weights[:, parent] > 0)
        happened = labels[rows, task] == 1
        if happened.all() or not happened.any():
            space = tasks.spaces(name)[-1]
            raise InputError(f"task {name!r} must have positives and negatives ({space}) to be calibrated")
        fit = _fit_isotonic if method == "isotonic" else _fit_platt
        maps[name] = fit(log_odds[rows, task], happened.astype(np.float64), weights[rows, task])
    return Calibration(tasks, method, maps)


def _fit_isotonic(scores: Array, happened: Array, weights: Array) -> dict[str, Sequence[float]]:
    try:
        from scipy.optimize import isotonic_regression
    except ImportError as error:
        raise InputError("isotonic calibration needs scipy: pip install 'torchrec_mtl[report]'") from error
    x, cells = np.unique(scores, return_inverse=True)  # equal scores get one value
    weight = np.bincount(cells, weights)
    y = isotonic_regression(np.bincount(cells, weights * happened) / weight, weights=weight).x
    least = 0.5 / (weight.sum() + 1)  # 0 and 1 would cost an infinite log loss on the first row that contradicts them
    y = np.clip(y, least, 1 - least)
    level = np.concatenate([[True], y[1:] != y[:-1], [True]])  # of each flat piece, the first and the last score
    kept = level[:-1] | level[1:]
    return {"x": x[kept].tolist(), "y": y[kept].tolist()}


def _fit_platt(scores: Array, happened: Array, weights: Array) -> dict[str, float]:
    """Newton's method on the weighted log loss; Platt's own targets keep it finite where classes are separable."""
    positive, negative = (weights * happened).sum(), (weights * (1 - happened)).sum()
    targets = np.where(happened == 1, (positive + 1) / (positive + 2), 1 / (negative + 2))
    design = np.stack([scores, np.ones_like(scores)], axis=1)
    line = np.array([1.0, 0.0])

    def loss(line: Array) -> float:
        z = design @ line
        return float((weights * (np.logaddexp(0, z) - targets * z)).sum())

    for _ in range(_NUM_STEPS):
        p = sigmoid(design @ line)
        gradient = design.T @ (weights * (p - targets))
        curvature = (design * (weights * p * (1 - p))[:, None]).T @ design + 1e-12 * np.eye(2)
        step, size = np.linalg.solve(curvature, gradient), 1.0
        while loss(line - size * step) > loss(line) and size > 1e-6:
            size /= 2
        line = line - size * step
        if np.abs(size * step).max() < 1e-10:
            break
    return {"slope": float(line[0]), "intercept": float(line[1])}
