"""Sluice networks in NumPy float64, one sample at a time (Ruder et al., AAAI 2019).

T tasks, L layers, S subspaces. Parameters (matrices as ``torch.nn.Linear`` has them, ``[out, in]``)::

    sluice = {"layers": [([(weight, bias)] * T, alpha [T * S, T * S])] * L, "beta": [T, L], "towers": [mlp] * T}
"""
# ruff: noqa: N806  (the paper's letters)

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.oracles.common import Array, mlp, relu


def sluice_layer(
    inputs: Sequence[Array], networks: Sequence[tuple[Array, Array]], alpha: Array, num_subspaces: int
) -> list[Array]:
    """The outputs of a layer whose subspaces are mixed across tasks: h~_a = sum_b alpha_ab h_b; [T] of [D]."""
    subspaces = []
    for x, (weight, bias) in zip(inputs, networks, strict=True):
        subspaces += np.split(relu(weight @ x + bias), num_subspaces)
    mixed = [sum(a * h for a, h in zip(row, subspaces, strict=True)) for row in alpha]
    return [np.concatenate(mixed[t * num_subspaces : (t + 1) * num_subspaces]) for t in range(len(networks))]


def sluice(x: Array, parameters: dict[str, Any], num_subspaces: int) -> Array:
    """The logits; [T]."""
    states: list[Array] = [x] * len(parameters["towers"])
    layers = []
    for networks, alpha in parameters["layers"]:
        states = sluice_layer(states, networks, alpha, num_subspaces)
        layers.append(states)
    logits = []
    for task, tower in enumerate(parameters["towers"]):
        read = sum(beta * layer[task] for beta, layer in zip(parameters["beta"][task], layers, strict=True))
        logits.append(mlp(read, tower)[0])
    return np.array(logits)


def subspace_penalty(parameters: dict[str, Any], num_subspaces: int) -> float:
    """L_c: the squared Frobenius norms of G_i^T G_j, over pairs of subspaces of every task's layers."""
    total = 0.0
    for networks, _ in parameters["layers"]:
        for weight, _ in networks:
            G = np.split(weight, num_subspaces)
            for i in range(num_subspaces):
                for j in range(i):
                    total += np.linalg.norm(G[j].T @ G[i], "fro") ** 2
    return total
