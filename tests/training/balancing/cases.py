"""The methods with arguments that make them act within a few batches, and their oracles."""

from collections.abc import Callable

import numpy as np

from tests.oracles import balancing as oracle
from tests.support import TASKS
from torchrec_mtl.training.balancing import BALANCINGS, BalancingMethod

ARGUMENTS = {"dwa": {"interval": 1, "temperature": 0.5}, "static": {"weights": [0.5, 1.0, 3.0]}}


def in_terms_of(gradients: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """The weights ``[T]`` with which the gradients ``[T, N]`` add up to a direction ``[N]``."""
    return np.linalg.lstsq(gradients.T, direction, rcond=None)[0]


# From the history of losses [K, T] and the last batch's gradients [T, N] to its weights [T].
WEIGHTS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "uncertainty": lambda history, gradients: np.ones(len(gradients)),  # while its parameters are at 0
    "dwa": lambda history, gradients: oracle.dwa(history, 0.5, 1),
    "static": lambda history, gradients: np.array([0.5, 1.0, 3.0]),
    "pcgrad": lambda history, gradients: in_terms_of(gradients, oracle.pcgrad(gradients, len(history) - 1)),
    "mgda": lambda history, gradients: oracle.mgda(gradients),
    "cagrad": lambda history, gradients: in_terms_of(gradients, oracle.cagrad(gradients, 0.4)),
}


def make(name: str) -> BalancingMethod:
    return BALANCINGS[name](TASKS, **ARGUMENTS.get(name, {}))
