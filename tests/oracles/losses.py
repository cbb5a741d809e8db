"""The papers' losses in float64, from probabilities, row by row.

``predictions`` are marginal probabilities [B, T] strictly inside (0, 1), in task order. ``labels`` are [B, T] in
{0, 1}. ``weights`` [B, T] are plain multipliers; a weight of 0 masks the label. Every mean is over the B rows,
whatever their weights.
"""
# ruff: noqa: N806  (the papers' letters)

import math
from collections.abc import Sequence

import numpy as np

from tests.oracles.common import Array, sigmoid


def binary_cross_entropy(prediction: float, label: float) -> float:
    """One term of BPCM eq. (11): -(y log p + (1 - y) log(1 - p))."""
    return -math.log(prediction) if label == 1 else -math.log1p(-prediction)


def cross_entropy(
    predictions: Array, labels: Array, weights: Array | None = None, task_weights: Sequence[float] | None = None
) -> float:
    """BPCM eq. (11), and the first sum of TAFE eq. (25), where ``task_weights`` are the w_i."""
    B, T = predictions.shape
    total = 0.0
    for i in range(B):
        for t in range(T):
            weight = 1.0 if weights is None else weights[i, t]
            if task_weights is not None:
                weight *= task_weights[t]
            if weight != 0.0:
                total += weight * binary_cross_entropy(predictions[i, t], labels[i, t])
    return total / B


Edges = Sequence[tuple[int, int]]


def chain(num_tasks: int) -> Edges:
    """(t - 1, t) for t >= 2, as in the papers."""
    return [(t - 1, t) for t in range(1, num_tasks)]


def _pair_weight(weights: Array | None, i: int, s: int, t: int) -> float:
    """The weight of a term of tasks s and t, where t needs s: that of t, and 0 where s is masked."""
    return 1.0 if weights is None else weights[i, t] * (weights[i, s] != 0)


def calibrator(predictions: Array, weights: Array | None = None, edges: Edges | None = None) -> float:
    """BPCM eq. (12), read as AITM's calibrator: (1/N) sum over t >= 2 of max(p_t - p_{t-1}, 0)."""
    B, T = predictions.shape
    total = 0.0
    for i in range(B):
        for s, t in chain(T) if edges is None else edges:
            total += _pair_weight(weights, i, s, t) * max(predictions[i, t] - predictions[i, s], 0.0)
    return total / B


def dependence(predictions: Array, labels: Array, weights: Array | None = None, edges: Edges | None = None) -> float:
    """TAFE eq. (25), second sum, and TAFE eq. (29): squared error of p_{t-1} - p_t against o_{t-1} - o_t, t >= 2."""
    B, T = predictions.shape
    total = 0.0
    for i in range(B):
        for s, t in chain(T) if edges is None else edges:
            weight = _pair_weight(weights, i, s, t)
            if weight != 0.0:
                difference = predictions[i, s] - predictions[i, t]
                total += weight * ((labels[i, s] - labels[i, t]) - difference) ** 2
    return total / B


def exit_depth(conditional: Array, labels: Array) -> float:
    """-log P(depth) of a chain: that of p_{t-1} - p_t, marginal probabilities, where t is the first missing step."""
    total = 0.0
    for row, happened in zip(np.cumprod(conditional, axis=1), labels, strict=True):
        p = [1.0, *row, 0.0]
        depth = int(np.cumprod(happened).sum())
        total -= np.log(p[depth] - p[depth + 1])
    return total / len(labels)


def local_space(predictions: Array, labels: Array, propensities: Array, weights: Array | None = None) -> float:
    """TAFE eq. (10) as a mean over all B rows: task t >= 2 in its local space, divided by the propensity.

    ``propensities[i, t]`` is P(y_{t-1} = 1 | x_i, y_t = labels[i, t]); column 0 is never read. The division by B
    instead of the number of local rows is the factor P(Y = 1) of eq. (10).
    A row whose former label is masked is left out, as it is not known to be in the local space.
    """
    B, T = predictions.shape
    total = 0.0
    for i in range(B):
        for t in range(T):
            if t > 0 and labels[i, t - 1] != 1:
                continue
            weight = 1.0 if weights is None else weights[i, t]
            known = t == 0 or weights is None or weights[i, t - 1] != 0.0
            if known and weight != 0.0:
                term = weight * binary_cross_entropy(predictions[i, t], labels[i, t])
                total += term / (1.0 if t == 0 else propensities[i, t])
    return total / B


def step_propensity(logits: Array, labels: Array, min_propensity: float = 1e-3) -> Array:
    """P(y_{t-1} = 1 | x, y_t) in a funnel with these marginal logits; [B, T], column 0 is 1.

    From y_t <= y_{t-1} and TAFE eq. (3): 1 where y_t = 1; (p_{t-1} - p_t) / (1 - p_t) where y_t = 0, clipped to
    [min_propensity, 1].
    """
    p = sigmoid(logits)
    propensities = np.ones_like(p)
    B, T = p.shape
    for i in range(B):
        for t in range(1, T):
            if labels[i, t] == 0:
                propensity = (p[i, t - 1] - p[i, t]) / (1.0 - p[i, t])
                propensities[i, t] = min(max(propensity, min_propensity), 1.0)
    return propensities


def difference_propensity(logits: Array, labels: Array, min_propensity: float = 1e-3) -> Array:
    """P(y_{t-1} = 1 | x, y_{t-1} - y_t) in a funnel with these marginal logits; [B, T], column 0 is 1.

    A difference of 1 has y_{t-1} = 1. One of 0 has y_{t-1} = y_t = 1, with probability p_t, or both 0, with
    1 - p_{t-1}; clipped to [min_propensity, 1].
    """
    p = sigmoid(logits)
    propensities = np.ones_like(p)
    B, T = p.shape
    for i in range(B):
        for t in range(1, T):
            if labels[i, t - 1] == labels[i, t]:
                propensities[i, t] = min(max(p[i, t] / (1.0 - p[i, t - 1] + p[i, t]), min_propensity), 1.0)
    return propensities


def local_space_dependence(
    predictions: Array, labels: Array, propensities: Array, weights: Array | None = None
) -> float:
    """TAFE eq. (26) with TAFE eq. (29), as a mean over all B rows; see `local_space`."""
    B, T = predictions.shape
    total = 0.0
    for i in range(B):
        for t in range(1, T):
            weight = _pair_weight(weights, i, t - 1, t)
            if weight != 0.0 and labels[i, t - 1] == 1:
                difference = predictions[i, t - 1] - predictions[i, t]
                total += weight * (1.0 - labels[i, t] - difference) ** 2 / propensities[i, t]
    return total / B


def delayed(
    predictions: Array,
    labels: Array,
    corrected: Sequence[tuple[int, int, int]],
    weights: Array | None = None,
    task_weights: Sequence[float] | None = None,
) -> float:
    """ES-DFM's loss, equation (1) of its supplement, plus the cross entropy of all other tasks.

    ``corrected`` are the columns of each corrected task, of its probability of a delayed positive and of that of a real
    negative.
    """
    B, T = predictions.shape
    importance = np.ones((B, T))
    for i in range(B):
        for task, delayed_positive, real_negative in corrected:
            p_dp, p_rn = predictions[i, delayed_positive], predictions[i, real_negative]
            importance[i, task] = 1.0 + p_dp if labels[i, task] == 1 else (1.0 + p_dp) * p_rn
    return cross_entropy(predictions, labels, importance if weights is None else importance * weights, task_weights)


def _mean(terms: Array, weights: Array | None, task_weights: Sequence[float] | None) -> float:
    """The sum over tasks of the weighted means over rows of terms [B, T]."""
    B, T = terms.shape
    total = 0.0
    for i in range(B):
        for t in range(T):
            weight = 1.0 if weights is None else weights[i, t]
            if weight != 0.0:
                total += weight * (1.0 if task_weights is None else task_weights[t]) * terms[i, t]
    return total / B


def focal(
    predictions: Array,
    labels: Array,
    gamma: float,
    alpha: float,
    weights: Array | None = None,
    task_weights: Sequence[float] | None = None,
) -> float:
    """Lin et al. eq. (5): -a_t (1 - p_t)^gamma log p_t."""
    p_t = np.where(labels == 1, predictions, 1 - predictions)
    a_t = np.where(labels == 1, alpha, 1 - alpha)
    return _mean(-a_t * (1 - p_t) ** gamma * np.log(p_t), weights, task_weights)


def smoothed(predictions: Array, labels: Array, smoothing: float, weights: Array | None = None) -> float:
    """Cross entropy with (1 - smoothing) of each label's mass on it and smoothing / 2 on each of 0 and 1."""
    right, wrong = (
        np.where(labels == 1, predictions, 1 - predictions),
        np.where(labels == 1, 1 - predictions, predictions),
    )
    return _mean(-(1 - smoothing / 2) * np.log(right) - smoothing / 2 * np.log(wrong), weights, None)


def pairwise(
    logits: Array,
    labels: Array,
    groups: Array,
    weights: Array | None = None,
    task_weights: Sequence[float] | None = None,
) -> float:
    """RankNet's cross entropy of all pairs of a positive and a negative of a group, divided by the group's rows."""
    B, T = logits.shape
    weights = np.ones((B, T)) if weights is None else weights
    total = 0.0
    for t in range(T):
        for group in set(groups.tolist()):
            rows = [i for i in range(B) if groups[i] == group and weights[i, t] != 0]
            pairs = 0.0
            for i in rows:
                for j in rows:
                    if labels[i, t] == 1 and labels[j, t] == 0:
                        pairs -= weights[i, t] * weights[j, t] * math.log(sigmoid(logits[i, t] - logits[j, t]))
            if rows:
                total += (1.0 if task_weights is None else task_weights[t]) * pairs / sum(weights[i, t] for i in rows)
    return total / B


def listwise(
    f: Array,
    labels: Array,
    groups: Array,
    weights: Array | None = None,
    task_weights: Sequence[float] | None = None,
) -> float:
    """JRC eq. (11) with f [B, T, 2]: -log exp(f(x)[y]) / sum over the context of exp(f(x')[y]), per row of it.

    The paper's sum counts each row of the context once; here it is their weighted mean.
    """
    B, T, _ = f.shape
    weights = np.ones((B, T)) if weights is None else weights
    terms = np.zeros((B, T))
    for i in range(B):
        for t in range(T):
            if weights[i, t] == 0:
                continue
            y = int(labels[i, t])
            context = [k for k in range(B) if groups[k] == groups[i] and weights[k, t] != 0]
            total = sum(weights[k, t] * math.exp(f[k, t, y]) for k in context)
            terms[i, t] = -f[i, t, y] + math.log(total / sum(weights[k, t] for k in context))
    return _mean(terms, weights, task_weights)
