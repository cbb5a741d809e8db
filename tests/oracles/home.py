"""HoME in NumPy float64, one sample at a time, as the docstrings of the model have it (Wang et al., 2024, section 3).

T tasks, C categories. Parameters (matrices as ``torch.nn.Linear`` has them, ``[out, in]``)::

    home = {"meta_experts": [unit] * (1 + C), "meta_mixtures": [mixture] * (1 + C),   # the shared one first
            "experts": [unit] * (1 + C), "task_experts": [unit] * T, "task_mixtures": [mixture] * T,
            "towers": [mlp] * T}
    unit = {"loras": [(B [rank, in], A [in, rank])] * L, "gate": [L, in] or None,
            "experts": [(weight, bias, norm)] * E}
    mixture = {"gate": [n, in], "self_gate": [n_own, in]}
"""

import itertools
from typing import Any

import numpy as np

from tests.oracles.common import Array, layer_norm, mlp, sigmoid, softmax


def feature_gate(v: Array, unit: dict[str, Any]) -> Array:
    """sum_l g(v)_l 2 sigmoid(v B_l A_l); [in]."""
    factors = [2 * sigmoid(A @ (B @ v)) for B, A in unit["loras"]]
    shares = np.ones(1) if unit["gate"] is None else softmax(unit["gate"] @ v)
    return sum(share * factor for share, factor in zip(shares, factors, strict=True))


def experts(v: Array, unit: dict[str, Any]) -> list[Array]:
    """Swish(Norm(W (v * gate(v)) + b)) of each expert; [E] of [D]."""
    x = v * feature_gate(v, unit)
    outputs = []
    for weight, bias, norm in unit["experts"]:
        y = layer_norm((weight @ x + bias)[None, :], norm)[0]
        outputs.append(y * sigmoid(y))
    return outputs


def mix(v: Array, seen: list[Array], own: list[Array], mixture: dict[str, Array]) -> Array:
    """The gate's mixture of all that is seen, plus the self-gate's of the unit's own experts; [D]."""
    g = softmax(mixture["gate"] @ v)
    scores = mixture["self_gate"] @ v
    s = sigmoid(scores) if len(own) == 1 else softmax(scores)
    return sum(a * e for a, e in zip(g, seen, strict=True)) + sum(a * e for a, e in zip(s, own, strict=True))


def home(v: Array, params: dict[str, Any], categories: list[int]) -> Array:
    """The logits; [T]."""
    meta = [experts(v, unit) for unit in params["meta_experts"]]
    z_shared = mix(v, [*itertools.chain(*meta)], meta[0], params["meta_mixtures"][0])
    logits = []
    for task, category in enumerate(categories):
        own = meta[1 + category]
        z = mix(v, meta[0] + own, own, params["meta_mixtures"][1 + category])
        x = np.concatenate([z, z_shared])
        of_task = experts(x, params["task_experts"][task])
        seen = experts(x, params["experts"][0]) + experts(x, params["experts"][1 + category]) + of_task
        state = mix(x, seen, of_task, params["task_mixtures"][task])
        logits.append(mlp(state, params["towers"][task])[0])
    return np.array(logits)
