"""MRAN in NumPy float64, one sample at a time, as the docstring of the model has it (Zhao et al., KDD 2019, section 3).

T tasks, F fields. Parameters (matrices as ``torch.nn.Linear`` has them, ``[out, in]``)::

    mran = {"tasks": [T, d], "task_attention": attention, "task_norm": norm,
            "attention": attention, "norm": norm,
            "query": [d, d], "key": [d, d], "aligned_norm": {"weight": [F, d], "bias": [F, d]}, "towers": [mlp] * T}
    attention = {"query": [d, d], "key": [d, d], "value": [d, d]}
"""
# ruff: noqa: N803, N806  (the paper's letters)

from typing import Any

import numpy as np

from tests.oracles.common import Array, attention, layer_norm, mlp, softmax


def related(X: Array, weights: dict[str, Array], norm: dict[str, Array], num_heads: int) -> Array:
    """Sections 3.2 and 3.3: LayerNorm(X + Attention(X, X)) of rows X."""
    return layer_norm(X + attention(X @ weights["query"].T, X, weights, num_heads), norm)


def aligned(o: Array, H: Array, params: dict[str, Any], num_heads: int) -> Array:
    """Section 3.4 for one task ``o`` [d] and features H [F, d]: each head's columns weighted by its alpha; [F, d]."""
    d_h = len(o) // num_heads
    weighted = np.zeros_like(H)
    for j in range(num_heads):
        head = slice(j * d_h, (j + 1) * d_h)
        query, keys = (params["query"] @ o)[head], (H @ params["key"].T)[:, head]
        alpha = softmax(keys @ query / np.sqrt(d_h))
        for f, weight in enumerate(alpha):
            weighted[f, head] = H[f, head] + weight * H[f, head]
    norm = {name: values.reshape(-1) for name, values in params["aligned_norm"].items()}
    return layer_norm(weighted.reshape(1, -1), norm)[0]


def mran(X: Array, params: dict[str, Any], num_heads: int) -> Array:
    """Logits [T] of one sample's fields X [F, d]."""
    O = related(params["tasks"], params["task_attention"], params["task_norm"], num_heads)  # noqa: E741
    H = related(X, params["attention"], params["norm"], num_heads)
    pairs = zip(O, params["towers"], strict=True)
    return np.array([mlp(aligned(o, H, params, num_heads), tower)[0] for o, tower in pairs])
