"""The distribution of a whole funnel: as exact fractions for the theorems, as a batch for the losses."""
# ruff: noqa: N803, N806  (the papers' letters)

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np


class Cell(NamedTuple):
    x: int
    y: int
    z: int


Distribution = dict[Cell, Fraction]
Loss = dict[tuple[int, int], Fraction]  # (x, s) -> L
Target = Callable[[Cell], int]
TARGETS: dict[str, Target] = {"2.1": lambda cell: cell.z, "3.1": lambda cell: cell.y - cell.z}


def distribution(counts: list[tuple[int, int, int]]) -> Distribution:
    """P(x, y, z) in proportion to ``counts[x]``, which counts (y, z) = (0, 0), (1, 0) and (1, 1)."""
    total = sum(map(sum, counts))
    outcomes = (0, 0), (1, 0), (1, 1)
    return {
        Cell(x, y, z): Fraction(count, total)
        for x, row in enumerate(counts)
        for (y, z), count in zip(outcomes, row, strict=True)
    }


def probability(P: Distribution, event: Callable[[Cell], bool]) -> Fraction:
    return sum((mass for cell, mass in P.items() if event(cell)), Fraction(0))


def clicked_share(P: Distribution, target: Target, at: Cell) -> Fraction:
    """P(Y = 1 | x, s) for the x and s of ``at``."""
    mass = probability(P, lambda cell: (cell.x, target(cell)) == (at.x, target(at)))
    clicked = probability(P, lambda cell: (cell.x, target(cell), cell.y) == (at.x, target(at), 1))
    return clicked / mass


def entire_space_loss(P: Distribution, target: Target, loss: Loss) -> Fraction:
    """E_D[L], the left side of the theorems: one task's term of TAFE eq. (8)."""
    return sum((mass * loss[cell.x, target(cell)] for cell, mass in P.items()), Fraction(0))


def local_space_loss(
    P: Distribution, target: Target, loss: Loss, share: Callable[[Cell], Fraction] | None = None
) -> Fraction:
    """E_C[P(Y = 1) / share * L], the right side if ``share`` is P(Y = 1 | x, s); E_C[L], of TAFE eq. (9), without."""
    click = probability(P, lambda cell: cell.y == 1)
    total = Fraction(0)
    for cell, mass in P.items():
        if cell.y == 1 and mass > 0:
            weight = click / share(cell) if share else 1
            total += mass / click * weight * loss[cell.x, target(cell)]
    return total


def unseen(P: Distribution, target: Target) -> list[Cell]:
    """The cells of positive mass whose (x, s) never occurs in the local space."""
    return [cell for cell, mass in P.items() if mass > 0 and clicked_share(P, target, cell) == 0]


class Enumeration(NamedTuple):
    """A batch that is a whole distribution: one row for every x and every depth in a funnel of T tasks."""

    x: np.ndarray  # [B]
    labels: np.ndarray  # [B, T]
    weights: np.ndarray  # [B, T], probability times B
    marginals: np.ndarray  # [X, T], P(y_t = 1 | x)
    propensities: np.ndarray  # [B, T], P(y_{t-1} = 1 | x, y_t); column 0 is NaN, as nothing may read it
    of_differences: np.ndarray  # [B, T], P(y_{t-1} = 1 | x, y_{t-1} - y_t), likewise


def enumeration(counts: np.ndarray) -> Enumeration:
    """``counts`` [X, T + 1]: the number of rows in which each x reaches exactly depth 0, 1, ..., T of the funnel."""
    X, T = len(counts), counts.shape[1] - 1
    x, depth = (index.reshape(-1) for index in np.indices(counts.shape))
    labels = (depth[:, None] > np.arange(T)).astype(float)
    propensities, of_differences = np.full((2, len(x), T), np.nan)
    for row in range(len(x)):
        for t in range(1, T):
            before = labels[:, t - 1] == 1
            for target, found in ((labels[:, t], propensities), (labels[:, t - 1] - labels[:, t], of_differences)):
                same = (x == x[row]) & (target == target[row])
                found[row, t] = counts.reshape(-1)[before & same].sum() / counts.reshape(-1)[same].sum()
    marginals = np.array([[row[t + 1 :].sum() / row.sum() for t in range(T)] for row in counts])
    weights = np.repeat(counts.reshape(-1, 1) / counts.sum() * len(x), T, axis=1)
    return Enumeration(x, labels, weights, marginals[:X], propensities, of_differences)
