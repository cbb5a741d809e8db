"""The methods with arguments that make them act within a few batches, and their oracles."""

from collections.abc import Callable

import numpy as np

from tests.oracles import balancing as oracle
from tests.support import TASKS
from torchrec_mtl.training.balancing import BALANCINGS, BalancingMethod

ARGUMENTS = {
    "dwa": {"interval": 1, "temperature": 0.5},
    "static": {"weights": [0.5, 1.0, 3.0]},
    "gradnorm": {"learning_rate": 0.05},
    "famo": {"learning_rate": 0.1},
}


def in_terms_of(gradients: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """The weights ``[T]`` with which the gradients ``[T, N]`` add up to a direction ``[N]``."""
    return np.linalg.lstsq(gradients.T, direction, rcond=None)[0]


# From all batches' losses [K, T] and gradients, K times [T, N], to the last batch's weights [T].
WEIGHTS: dict[str, Callable[[np.ndarray, list[np.ndarray]], np.ndarray]] = {
    "uncertainty": lambda losses, gradients: np.ones(len(TASKS)),  # while its parameters are at 0
    "dwa": lambda losses, gradients: oracle.dwa(losses, 0.5, 1),
    "static": lambda losses, gradients: np.array([0.5, 1.0, 3.0]),
    "pcgrad": lambda losses, gradients: in_terms_of(gradients[-1], oracle.pcgrad(gradients[-1], len(losses) - 1)),
    "mgda": lambda losses, gradients: oracle.mgda(gradients[-1]),
    "cagrad": lambda losses, gradients: in_terms_of(gradients[-1], oracle.cagrad(gradients[-1], 0.4)),
    "gradnorm": lambda losses, gradients: oracle.gradnorm(losses, gradients, 1.5, 0.05),
    "famo": lambda losses, gradients: oracle.famo(losses, 0.1, 0.01),
    "aligned_mtl": lambda losses, gradients: in_terms_of(gradients[-1], oracle.aligned_mtl(gradients[-1])),
}


def make(name: str) -> BalancingMethod:
    return BALANCINGS[name](TASKS, **ARGUMENTS.get(name, {}))
