"""MoSE in NumPy float64, one sample at a time (Qin et al., KDD 2020, section 4).

T tasks, n experts, F steps. Parameters (matrices as ``torch.nn.Linear`` has them, ``[out, in]``)::

    mose = {"bottom": lstm, "experts": [lstm] * n, "gates": [gate] * T, "task_lstms": [lstm] * T, "towers": [mlp] * T}
    lstm = {"i": (W [H, in], U [H, H], b [H]), "f": ..., "o": ..., "g": ...}
"""
# ruff: noqa: N806  (the papers' letters)

from typing import Any

import numpy as np

from tests.oracles.common import Array, mlp, sigmoid
from tests.oracles.experts import gate_weights


def lstm(sequence: Array, weights: dict[str, Any]) -> Array:
    """The states [F, H] of a sequence [F, in], Hochreiter and Schmidhuber with a forget gate."""

    def read(name: str, x: Array, h: Array) -> Array:
        W, U, b = weights[name]
        return W @ x + U @ h + b

    h = c = np.zeros(len(weights["i"][2]))
    states = []
    for x in sequence:
        i, f, o = (sigmoid(read(name, x, h)) for name in "ifo")
        c = f * c + i * np.tanh(read("g", x, h))
        h = o * np.tanh(c)
        states.append(h)
    return np.array(states)


def mose(fields: Array, params: dict[str, Any]) -> Array:
    """Logits [T] of a sequence [F, D]."""
    bottom = lstm(fields, params["bottom"])
    outputs = [lstm(bottom, expert) for expert in params["experts"]]
    logits = []
    for gate, task_lstm, tower in zip(params["gates"], params["task_lstms"], params["towers"], strict=True):
        weights = gate_weights(fields.reshape(-1), gate)
        mixture = sum(weight * output for weight, output in zip(weights, outputs, strict=True))
        logits.append(mlp(lstm(mixture, task_lstm)[-1], tower)[0])
    return np.array(logits)
