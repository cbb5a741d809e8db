"""Histories by the papers' equations: padded to one length, in float64, one sample at a time.

DIN: Zhou et al., KDD 2018, eq. (3). The transformer: Chen et al., DLP-KDD 2019, eq. (2)-(4).
"""

from typing import Any

import numpy as np

from tests.oracles.common import Array, layer_norm


def padded(rows: Array, lengths: Array, max_length: int) -> tuple[Array, Array]:
    """Histories ``[B, L, d]`` whose newest rows are last, with zeros before them, and which are rows ``[B, L]``."""
    histories, is_row = np.zeros((len(lengths), max_length, rows.shape[1])), np.zeros((len(lengths), max_length), bool)
    end = 0
    for sample, length in enumerate(lengths):
        end += length
        kept = min(length, max_length)
        if kept:
            histories[sample, -kept:], is_row[sample, -kept:] = rows[end - kept : end], True
    return histories, is_row


def target_attention(H: Array, is_row: Array, e: Array, params: dict[str, Any], softmax: bool) -> Array:  # noqa: N803
    """The field ``[d]`` of one history ``[L, d]`` and one candidate ``[d]``."""
    scores = np.zeros(len(H))
    for place, h in enumerate(H):
        x = params["hidden"][0] @ np.concatenate([h, e, h - e, h * e]) + params["hidden"][1]
        x = np.where(x > 0, x, params["slope"] * x)
        scores[place] = 1 + (params["output"][0] @ x + params["output"][1]).item()
    if softmax:
        scores = np.where(is_row, scores, -np.inf)
        scores = np.exp(scores - (scores.max() if is_row.any() else 0))
        scores /= scores.sum() if is_row.any() else 1
    return (scores * is_row) @ H


def transformer(H: Array, is_row: Array, params: dict[str, Any], num_heads: int) -> Array:  # noqa: N803
    """One history ``[L, d]`` after the layers; the last row has position 0."""
    d = H.shape[1]
    H = H + params["positions"][: len(H)][::-1]  # noqa: N806
    for layer in params["layers"]:
        query, key, value = (H @ layer["projection"][part * d : (part + 1) * d].T for part in range(3))
        heads = []
        for columns in np.split(np.arange(d), num_heads):
            scores = query[:, columns] @ key[:, columns].T / np.sqrt(d / num_heads)
            scores = np.where(is_row, scores, -np.inf if is_row.any() else 0)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(weights / weights.sum(1, keepdims=True) @ value[:, columns])
        H = layer_norm(H + np.concatenate(heads, 1) @ layer["output"].T, layer["after_attention"])  # noqa: N806
        x = H @ layer["inner"][0].T + layer["inner"][1]
        x = np.where(x > 0, x, 0.01 * x) @ layer["outer"][0].T + layer["outer"][1]
        H = layer_norm(H + x, layer["after_mlp"])  # noqa: N806
    return H


def field(
    rows: Array, lengths: Array, candidates: Array, params: dict[str, Any], max_length: int, num_heads: int
) -> Array:
    """The field ``[B, d]`` of histories ``[V, d]``; through a transformer if ``params`` has one."""
    found = []
    for H, is_row, e in zip(*padded(rows, lengths, max_length), candidates, strict=True):  # noqa: N806
        read = transformer(H, is_row, params["transformer"], num_heads) if "transformer" in params else H
        found.append(target_attention(read, is_row, e, params["attention"], softmax="transformer" in params))
    return np.stack(found)
