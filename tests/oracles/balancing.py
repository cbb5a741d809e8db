"""The papers' weights of tasks in float64, from the tasks' losses ``[T]`` and gradients ``[T, N]``.

A function of a history has the losses of all batches so far, ``[K, T]``, and returns the last batch's weights.
"""
# ruff: noqa: N803, N806  (the papers' letters)

import random

import numpy as np
from scipy.optimize import minimize, nnls

from tests.oracles.common import Array


def uncertainty(losses: Array, sigmas: Array) -> float:
    """Kendall et al. eq. (10), second term: what is minimised over the model and over the noises."""
    return sum(L / s**2 + np.log(s) for L, s in zip(losses, sigmas, strict=True))


def dwa(history: Array, temperature: float, interval: int) -> Array:
    """Liu et al. eq. (7); the batches of an interval are the paper's epoch."""
    K, T = history.shape
    epochs = (K - 1) // interval  # that have ended before this batch
    if epochs < 2:
        return np.ones(T)
    L = [history[e * interval : (e + 1) * interval].mean(axis=0) for e in range(epochs)]
    w = L[-1] / L[-2]
    return T * np.exp(w / temperature) / np.exp(w / temperature).sum()


def pcgrad(G: Array, batch: int) -> Array:
    """Yu et al., algorithm 1, on the gradients themselves, with the orders of this number of batch; the sum ``[N]``."""
    draw, T = random.Random(batch), len(G)
    pc = G.copy()
    for i in range(T):
        for j in draw.sample([j for j in range(T) if j != i], T - 1):
            if pc[i] @ G[j] < 0:
                pc[i] = pc[i] - (pc[i] @ G[j]) / (G[j] @ G[j]) * G[j]
    return pc.sum(axis=0)


def mgda(G: Array) -> Array:
    """Sener and Koltun eq. (3), as the non-negative least squares problem that has the same minimum."""
    scale = np.linalg.norm(G, axis=1).max() or 1.0
    with_sum = np.vstack([G.T / scale, np.ones(len(G))])
    found, _ = nnls(with_sum, np.append(np.zeros(G.shape[1]), 1.0))
    return found / found.sum()


def mgda_two(g1: Array, g2: Array) -> float:
    """Sener and Koltun, algorithm 1: the weight of the first of two."""
    if g1 @ g2 >= g1 @ g1:
        return 1.0
    if g1 @ g2 >= g2 @ g2:
        return 0.0
    return (g2 - g1) @ g2 / ((g1 - g2) @ (g1 - g2))


def cagrad(G: Array, c: float) -> Array:
    """Liu et al. eq. (3), the primal problem, solved for ``d`` itself in the span of the gradients; ``d [N]``."""
    Q, R = np.linalg.qr(G.T)  # G.T = Q R: d = Q x
    scale = np.linalg.norm(R, axis=0).max()
    R = R / scale
    x0 = R.mean(axis=1)
    start = np.append(x0, (R.T @ x0).min())
    within = {"type": "ineq", "fun": lambda y: c**2 * x0 @ x0 - (y[:-1] - x0) @ (y[:-1] - x0)}
    worst = {"type": "ineq", "fun": lambda y: R.T @ y[:-1] - y[-1]}
    found = minimize(lambda y: -y[-1], start, constraints=[within, worst], options={"ftol": 1e-15, "maxiter": 1000})
    return scale * Q @ found.x[:-1]
