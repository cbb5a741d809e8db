"""The papers' weights of tasks in float64, from the tasks' losses ``[T]`` and gradients ``[T, N]``.

A function of a history has the losses of all batches so far, ``[K, T]``, and returns the last batch's weights.
"""
# ruff: noqa: N803, N806  (the papers' letters)

import itertools
import random
from collections.abc import Sequence

import numpy as np
import torch
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
    """Liu et al., the primal problem, solved for ``d`` itself in the span of the gradients; ``d [N]``."""
    Q, R = np.linalg.qr(G.T)  # G.T = Q R: d = Q x
    scale = np.linalg.norm(R, axis=0).max()
    R = R / scale
    x0 = R.mean(axis=1)
    start = np.append(x0, (R.T @ x0).min())
    within = {"type": "ineq", "fun": lambda y: c**2 * x0 @ x0 - (y[:-1] - x0) @ (y[:-1] - x0)}
    worst = {"type": "ineq", "fun": lambda y: R.T @ y[:-1] - y[-1]}
    found = minimize(lambda y: -y[-1], start, constraints=[within, worst], options={"ftol": 1e-15, "maxiter": 1000})
    return scale * Q @ found.x[:-1]


def gradnorm(history: Array, gradients: Sequence[Array], alpha: float, learning_rate: float) -> Array:
    """Chen et al., algorithm 1: the weights of the last batch, from all batches' losses and gradients.

    The derivative of ``L_grad`` is taken by autograd, and Adam is torch's.
    """
    w = torch.ones(history.shape[1], dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([w], lr=learning_rate)
    for losses, G in zip(history[:-1], gradients[:-1], strict=True):
        norms = (w[:, None] * torch.from_numpy(G)).norm(dim=1)
        progress = torch.from_numpy(losses / history[0])
        r = progress / progress.mean()
        w.grad = torch.autograd.grad((norms - (norms.mean() * r**alpha).detach()).abs().sum(), w)[0]
        adam.step()
        with torch.no_grad():
            w.mul_(len(w) / w.sum())
    return w.detach().numpy()


def famo(history: Array, learning_rate: float, gamma: float) -> Array:
    """Liu et al., algorithm 1, where each batch's losses are those after the step before; the last batch's weights."""
    xi = torch.zeros(history.shape[1], dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([xi], lr=learning_rate, weight_decay=gamma)
    for before, after in itertools.pairwise(history):
        delta = torch.from_numpy(np.log(before) - np.log(after))
        xi.grad = torch.autograd.grad(torch.softmax(xi, 0) @ delta, xi)[0]
        adam.step()
    z, L = torch.softmax(xi, 0).detach().numpy(), history[-1]
    return (1 / (z / L).sum()) * z / L


def aligned_mtl(G: Array) -> Array:
    """Senushkin et al.: the nearest matrix to ``G`` of condition number 1, by its singular values; the sum
    of its rows, ``[N]``."""
    U, S, Vt = np.linalg.svd(G, full_matrices=False)
    kept = np.finfo(np.float32).eps * len(G) * S[0] ** 2 < S**2
    return (S[kept].min() * U[:, kept] @ Vt[kept]).sum(axis=0)
