"""What the equations of the papers share, for one sample at a time.

A matrix is stored as ``torch.nn.Linear`` stores it, ``[out, in]``: the papers' ``X W`` is ``X @ weight.T``.
An MLP is a list of ``(weight, bias)``, with ReLU between them and none after the last. A LayerNorm is
``{"weight": [d], "bias": [d]}``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(x, dtype=np.float64)))


def softmax(scores: Array) -> Array:
    """Softmax of each row."""
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def relu(x: Array) -> Array:
    return np.where(x > 0.0, x, 0.0)


def mlp(x: Array, layers: Sequence[tuple[Array, Array]]) -> Array:
    """Linear layers with ReLU between them; the last one stays linear."""
    for i, (weight, bias) in enumerate(layers):
        x = x @ weight.T + bias
        if i < len(layers) - 1:
            x = relu(x)
    return x


def layer_norm(x: Array, norm: dict[str, Array], eps: float = 1e-5) -> Array:
    """Each row to mean 0 and variance 1 (biased variance plus ``eps``), then the affine map."""
    rows = []
    for row in x:
        mean = row.sum() / row.size
        variance = ((row - mean) ** 2).sum() / row.size
        rows.append((row - mean) / np.sqrt(variance + eps) * norm["weight"] + norm["bias"])
    return np.stack(rows)


def attention(
    query: Array, memory: Array, weights: dict[str, Array], num_heads: int, shares: Array | None = None
) -> Array:
    """Heads next to each other: O_j = softmax(Q_j K_j^T / sqrt(d_h)) V_j, with K_j = M Wk_j and V_j = M Wv_j.

    Head ``j`` has ``d_h = d / num_heads`` adjacent columns of the query, and the same rows of ``weights["key"]`` and
    ``weights["value"]`` (each ``[d, d]``). There is no output projection.

    Args:
        query: [Q, d], already projected if the equation projects it.
        memory: [N, d], the rows attended to.
        shares: [N], by which each row's exponential is multiplied; attention to rows of share 0 alone is 0.

    Returns:
        [Q, d].
    """
    d_h = query.shape[1] // num_heads
    heads = []
    for j in range(num_heads):
        head = slice(j * d_h, (j + 1) * d_h)
        keys = memory @ weights["key"][head].T
        values = memory @ weights["value"][head].T
        scores = query[:, head] @ keys.T / np.sqrt(d_h)
        if shares is None:
            heads.append(softmax(scores) @ values)
        else:
            weighted = np.exp(scores - scores.max(axis=1, keepdims=True)) * shares
            heads.append(
                weighted @ values / weighted.sum(axis=1, keepdims=True) if shares.any() else 0 * query[:, head]
            )
    return np.concatenate(heads, axis=1)


def per_sample(function: Callable[..., Array], *batches: Array, **keywords: Any) -> Array:
    """Calls ``function`` on one sample of every batch at a time; stacks the results along a new first axis."""
    return np.stack([function(*samples, **keywords) for samples in zip(*batches, strict=True)])
