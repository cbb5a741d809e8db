"""ESMM, ESCM2, AITM, ResFlow and Cross-Stitch in NumPy float64; one sample at a time.

``x`` is one sample's concatenated embeddings [n]. Parameters (matrices as ``torch.nn.Linear`` has them, [out, in])::

    esmm = [mlp] * T
    escm2 = {"towers": [mlp] * T, "imputation": [mlp] * (T - 1)}
    aitm = {"f": [mlp] * T, "g": [mlp] * (T - 1), "h1": [d, d], "h2": [d, d], "h3": [d, d], "towers": [mlp] * T}
    resflow = {"layers": [[(weight, bias)] * T] * L, "outputs": [(weight, bias)] * T}
    cross_stitch = {"layers": [([(weight, bias)] * T, alphas [channels, T, T]), ...], "towers": [mlp] * T}
"""
# ruff: noqa: N806  (the papers' letters)

from collections.abc import Sequence
from typing import Any

import mpmath
import numpy as np

from tests.oracles.common import Array, mlp, relu, sigmoid, softmax
from tests.oracles.losses import binary_cross_entropy


def marginal_logits(conditional_logits: Array) -> Array:
    """Logits of the cumulative products of probabilities, in 400 digits; [T]."""
    with mpmath.workdps(400):
        logits, p = [], mpmath.mpf(1)
        for logit in conditional_logits:
            p *= 1 / (1 + mpmath.exp(-mpmath.mpf(float(logit))))
            logits.append(float(mpmath.log(p / (1 - p))))
    return np.array(logits)


def conditional_logits(x: Array, towers: list[Any]) -> Array:
    """ESMM's and ESCM2's towers; [T]."""
    return np.concatenate([mlp(x, tower) for tower in towers])


def esmm(x: Array, towers: list[Any]) -> Array:
    """ESMM eq. (1): the marginal logits; [T]."""
    return marginal_logits(conditional_logits(x, towers))


def imputed_errors(x: Array, towers: list[Any]) -> Array:
    """ESCM2's delta^, log(1 + exp(MLP(x))); [T - 1]."""
    return np.logaddexp(0.0, np.concatenate([mlp(x, tower) for tower in towers]))


def information_transfer(p: Array, q: Array, weights: dict[str, Array]) -> Array:
    """AITM: z = sum_u w_u h_1(u) over u in {p, q}, w the softmax of <h_2(u), h_3(u)> / sqrt(d); [d]."""
    scores = [weights["h2"] @ u @ (weights["h3"] @ u) / np.sqrt(len(u)) for u in (p, q)]
    w_p, w_q = softmax(np.array(scores))
    return w_p * (weights["h1"] @ p) + w_q * (weights["h1"] @ q)


def aitm(x: Array, parameters: dict[str, Any]) -> Array:
    """z_1 = q_1; z_t is the transfer of p_{t-1} and q_t; logits MLP(z_t); [T]."""
    logits, z = [], None
    for t, f in enumerate(parameters["f"]):
        q = relu(mlp(x, f))
        z = q if z is None else information_transfer(relu(mlp(z, parameters["g"][t - 1])), q, parameters)
        logits.append(mlp(z, parameters["towers"][t]))
    return np.concatenate(logits)


def resflow(
    x: Array,
    parameters: dict[str, Any],
    parents: Sequence[int | None],
    layer_links: bool = True,
    logit_links: bool = True,
) -> Array:
    """h_t^l = relu(W h_t^{l-1} + b) + h_s^l and logit_t = w h_t + b + logit_s, with s the parent of t; [T]."""

    def state(task: int, layer: int) -> Array:
        if layer == 0:
            return x
        weight, bias = parameters["layers"][layer - 1][task]
        own = relu(weight @ state(task, layer - 1) + bias)
        return own if parents[task] is None or not layer_links else own + state(parents[task], layer)

    def logit(task: int) -> float:
        weight, bias = parameters["outputs"][task]
        own = (weight @ state(task, len(parameters["layers"])) + bias)[0]
        return own if parents[task] is None or not logit_links else own + logit(parents[task])

    return np.array([logit(task) for task in range(len(parents))])


def cross_stitch_layer(inputs: Sequence[Array], networks: Sequence[tuple[Array, Array]], alphas: Array) -> Array:
    """Misra et al. eq. (1) on the outputs of one layer; [T, channels]."""
    outputs = [relu(weight @ x + bias) for x, (weight, bias) in zip(inputs, networks, strict=True)]
    T = len(outputs)
    mixed = np.zeros((T, len(alphas)))
    for c, alpha in enumerate(alphas):
        for task in range(T):
            for other in range(T):
                mixed[task, c] += alpha[task, other] * outputs[other][c]
    return mixed


def cross_stitch(x: Array, parameters: dict[str, Any]) -> Array:
    """A network for each task, stitched after every layer; [T]."""
    states: Sequence[Array] = [x] * len(parameters["towers"])
    for networks, alphas in parameters["layers"]:
        states = cross_stitch_layer(states, networks, alphas)
    return np.concatenate([mlp(state, tower) for state, tower in zip(states, parameters["towers"], strict=True)])


def counterfactual(
    conditional: Array,
    labels: Array,
    weights: Array,
    task_weights: Array,
    imputed: Array | None,
    counterfactual_weight: float,
    global_weight: float,
    min_propensity: float,
) -> float:
    """ESCM2's L_CTR + lambda_c L_CVR + lambda_g L_CTCVR, from conditional logits [B, T]; ``imputed`` for DR."""
    B, T = labels.shape
    total = 0.0
    for i in range(B):
        c = sigmoid(conditional[i])
        p = np.cumprod(c)
        for t in range(T):
            weight = weights[i, t] * task_weights[t]
            if weight == 0:
                continue
            total += weight * (global_weight if t else 1.0) * binary_cross_entropy(p[t], labels[i, t])
            if t == 0 or weights[i, t - 1] == 0:
                continue
            o, propensity = labels[i, t - 1], max(p[t - 1], min_propensity)
            delta = binary_cross_entropy(c[t], labels[i, t])
            if imputed is None:
                risk = o * delta / propensity
            else:
                e = delta - imputed[i, t - 1]
                risk = imputed[i, t - 1] + o * e / propensity + o * e**2 / propensity
            total += counterfactual_weight * weight * risk
    return total / B


def ddpo(x: Array, parameters: dict[str, Any]) -> tuple[Array, Array]:
    """DDPO eq. (5), (7), (12) to (14): conditional logits [T], and the conversion propensities' [T - 1].

    ``parameters``: "f" and "towers" as in `aitm`, "conversions" and "conversion_towers", and for each step in
    "transfers" the ReLU layers "click" and "conversion", the attentions "T_o" and "T_c", and the fusion "theta_t".
    """
    own = [relu(mlp(x, f)) for f in parameters["f"]]
    conversions = [relu(mlp(x, f)) for f in parameters["conversions"]]
    states = [own[0]]
    for t, step in enumerate(parameters["transfers"]):
        by_click = information_transfer(relu(mlp(own[t], step["click"])), own[t + 1], step["T_o"])
        by_conversion = information_transfer(relu(mlp(conversions[t], step["conversion"])), own[t + 1], step["T_c"])
        states.append(relu(mlp(np.concatenate([by_click, by_conversion]), step["theta_t"])))
    logits = [mlp(state, tower) for state, tower in zip(states, parameters["towers"], strict=True)]
    propensities = [mlp(f, tower) for f, tower in zip(conversions, parameters["conversion_towers"], strict=True)]
    return np.concatenate(logits), np.concatenate([np.empty(0), *propensities])


def _soft_cross_entropy(p: float, label: float) -> float:
    return -label * np.log(p) - (1 - label) * np.log(1 - p)


def _entire_space(
    conditional: Array,
    labels: Array,
    weights: Array,
    task_weights: Array,
    global_weight: float,
    min_propensity: float,
    term: Any,
) -> float:
    """L_CTR + lambda_g L_CTCVR, and ``term(i, t, o, r, r^, 1 / o^, 1 / (1 - o^))`` for each step."""
    B, T = labels.shape
    total = 0.0
    for i in range(B):
        c = sigmoid(conditional[i])
        p = np.cumprod(c)
        for t in range(T):
            weight = weights[i, t] * task_weights[t]
            if weight == 0:
                continue
            total += weight * (global_weight if t else 1.0) * binary_cross_entropy(p[t], labels[i, t])
            if t and weights[i, t - 1] != 0:
                shares = max(p[t - 1], min_propensity), max(1 - p[t - 1], min_propensity)
                total += weight * term(i, t - 1, labels[i, t - 1], labels[i, t], c[t], 1 / shares[0], 1 / shares[1])
    return total / B


def dcmt_objective(
    conditional: Array,
    counterfactual: Array,
    labels: Array,
    weights: Array,
    task_weights: Array,
    counterfactual_weight: float,
    global_weight: float,
    prior_weight: float,
    min_propensity: float,
) -> float:
    """DCMT's objective from conditional logits [B, T] and the counterfactual towers' [B, T - 1]."""

    def term(i: int, t: int, o: float, r: float, r_hat: float, of_seen: float, of_unseen: float) -> float:
        r_star = sigmoid(counterfactual[i, t])
        factual = o * _soft_cross_entropy(r_hat, r) * of_seen
        opposite = (1 - o) * _soft_cross_entropy(r_star, 1 - r) * of_unseen
        return counterfactual_weight * (factual + opposite + prior_weight * abs(1 - (r_hat + r_star)))

    return _entire_space(conditional, labels, weights, task_weights, global_weight, min_propensity, term)


def ddpo_objective(
    conditional: Array,
    conversion: Array,
    labels: Array,
    weights: Array,
    task_weights: Array,
    conversion_weight: float,
    counterfactual_weight: float,
    global_weight: float,
    min_propensity: float,
    soft_labels: bool,
) -> float:
    """DDPO eq. (18) with eq. (8), or with eq. (10) for soft labels, without the normalisation of eq. (15)."""

    def term(i: int, t: int, o: float, r: float, r_hat: float, of_seen: float, of_unseen: float) -> float:
        r_c = sigmoid(conversion[i, t])
        known = 1.0 if r == 1 else r_c if soft_labels else 0.0
        direct = o * _soft_cross_entropy(r_hat, known) * of_seen + (1 - o) * _soft_cross_entropy(r_hat, r_c) * of_unseen
        return conversion_weight * o * _soft_cross_entropy(r_c, r) + counterfactual_weight * direct

    return _entire_space(conditional, labels, weights, task_weights, global_weight, min_propensity, term)
