"""BPCM's equations in NumPy float64: one function for each equation, one sample at a time.

F fields, d embedding dimension, T tasks, B samples. ``E`` is one sample's field embeddings [F, d]. Where the
paper prints ``W X`` with a [d, d] matrix and X in R^{F x d}, the matrix acts on each field's vector.

Parameters of the whole model (matrices as ``torch.nn.Linear`` has them, ``[out, in]``)::

    {"feature_towers": [feature_tower] * T, "transitions": [transition] * (T - 1), "towers": [mlp] * T}

    feature_tower = {
        "attention": {"query": [d, d], "key": [d, d], "value": [d, d]},              # W_Q, W_K, W_V
        "aggregation": {"weight1": [hidden, n], "bias1": [hidden],                   # n = d, or F * d
                        "weight2": [n, hidden], "bias2": [n]},
        "gate": {"aggregated": [d, d], "attended": [d, d]},                          # W_C, W_D
    }
    transition = {"query": [d, d], "key": [d, d], "value": [d, d]}                   # of step t -> t + 1
                 plus "norm": {"weight": [d], "bias": [d]} where a LayerNorm follows the sum
    mlp = [(weight, bias), ...]                                                      # F * d -> ... -> 1

The dict may lack the parts that an ablation removes.
"""
# ruff: noqa: N803, N806  (the papers' letters)

from collections.abc import Collection
from typing import Any

import numpy as np

from tests.oracles import losses
from tests.oracles.common import Array, attention, layer_norm, mlp, relu, sigmoid


def self_attention(E: Array, weights: dict[str, Array], num_heads: int = 1) -> Array:
    """BPCM eqs. (2)-(3): E_att = softmax(Q K^T / sqrt(d)) V over the fields; [F, d].

    With several heads, each has d / num_heads columns and the scale 1 / sqrt(d / num_heads).
    """
    return attention(E @ weights["query"].T, E, weights, num_heads)


def aggregation(E: Array, weights: dict[str, Array], mixing: str = "embedding") -> Array:
    """BPCM eq. (4): E_org = ReLU(W2 ReLU(W1 E + b1) + b2); [F, d].

    ``mixing="embedding"`` applies it to each field's vector, ``"fields"`` to all F * d numbers at once.
    """
    if mixing == "fields":
        return aggregation(E.reshape(1, -1), weights).reshape(E.shape)
    assert mixing == "embedding", mixing
    rows = []
    for vector in E:
        hidden = relu(weights["weight1"] @ vector + weights["bias1"])
        rows.append(relu(weights["weight2"] @ hidden + weights["bias2"]))
    return np.stack(rows)


def gate_signal(E_org: Array, E_att: Array, weights: dict[str, Array]) -> Array:
    """BPCM eq. (5): W_b = sigmoid(W_C E_org + W_D E_att); [F, d]."""
    rows = [weights["aggregated"] @ o + weights["attended"] @ a for o, a in zip(E_org, E_att, strict=True)]
    return sigmoid(np.stack(rows))


def complementary_gate(E_org: Array, E_att: Array, W_b: Array) -> Array:
    """BPCM eq. (6): q = E_att * W_b + E_org * (1 - W_b); [F, d]."""
    return E_att * W_b + E_org * (1.0 - W_b)


def feature_tower(
    E: Array,
    tower: dict[str, dict[str, Array]],
    num_heads: int = 1,
    mixing: str = "embedding",
    without: Collection[str] = (),
) -> Array:
    """BPCM eqs. (2)-(6) and section 4.4: one task's q; [F, d].

    ``without`` may hold "attention" (q = E_org), "aggregation" (q = E_att) or "gate" (q = E_att + E_org).
    """
    if "attention" in without:
        return aggregation(E, tower["aggregation"], mixing)
    E_att = self_attention(E, tower["attention"], num_heads)
    if "aggregation" in without:
        return E_att
    E_org = aggregation(E, tower["aggregation"], mixing)
    if "gate" in without:
        return E_att + E_org
    return complementary_gate(E_org, E_att, gate_signal(E_org, E_att, tower["gate"]))


def bpc(q: Array, h: Array, transition: dict[str, Any], num_heads: int = 1, both: bool = False) -> Array:
    """BPCM eqs. (7) and (9): Z_{t+1} = Attention(q_{t+1}, h_t) + q_{t+1}; [F, d].

    Queries come from ``q`` (q_{t+1}), keys and values from ``h`` (h_t). Eq. (8), h_t = Dropout(Z_t), is Z_t here, as
    the oracle drops nothing. A LayerNorm follows the sum if ``transition`` has a "norm". If ``both``, keys and values
    come from ``h`` and ``q``.
    """
    memory = np.concatenate([h, q]) if both else h
    Z = attention(q @ transition["query"].T, memory, transition, num_heads) + q
    return layer_norm(Z, transition["norm"]) if "norm" in transition else Z


def tower_logit(Z: Array, tower: list[tuple[Array, Array]]) -> float:
    """BPCM eq. (10) before the sigmoid: an MLP on the flattened Z."""
    return float(mlp(Z.reshape(-1), tower)[0])


def forward(
    embeddings: Array,
    params: dict[str, Any],
    num_heads: int = 1,
    mixing: str = "embedding",
    without: Collection[str] = (),
    both: bool = False,
) -> Array:
    """BPCM eqs. (2)-(10): logits [B, T] from field embeddings [B, F, d].

    ``without`` is as in ``feature_tower``; "transition" leaves out BPC (Z_t = q_t). ``both`` is as in ``bpc``.
    """
    logits = []
    for E in embeddings:
        Z: list[Array] = []
        for tower in params["feature_towers"]:
            q = feature_tower(E, tower, num_heads, mixing, without)
            if Z and "transition" not in without:
                q = bpc(q, Z[-1], params["transitions"][len(Z) - 1], num_heads, both)
            Z.append(q)
        logits.append([tower_logit(Z_t, tower) for Z_t, tower in zip(Z, params["towers"], strict=True)])
    return np.array(logits)


def objective(predictions: Array, labels: Array, alpha: float = 0.6, weights: Array | None = None) -> float:
    """BPCM eq. (13): L = L_cl + alpha L_cr, from probabilities [B, T]."""
    cross_entropy = losses.cross_entropy(predictions, labels, weights)
    return cross_entropy + alpha * losses.calibrator(predictions, weights)


def rela_impr(auc: float, base_auc: float) -> float:
    """BPCM eq. (14): (AUC - 0.5) / (AUC_base - 0.5) - 1."""
    return (auc - 0.5) / (base_auc - 0.5) - 1.0
