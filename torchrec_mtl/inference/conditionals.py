"""From marginal logits to p(step | step before), and back up the funnel."""

import numpy as np
import torch

from torchrec_mtl.data.lists import Array
from torchrec_mtl.metrics.probability import conditional_logits
from torchrec_mtl.tasks import TaskForest


def conditional_log_odds(logits: Array, tasks: TaskForest) -> Array:
    """Returns the log-odds of p(step | step before) ``[N, T]``, float64, of marginal logits ``[N, T]``.

    A task that needs no other keeps its logits. A conditional above 1 is taken for 1, see
    `torchrec_mtl.metrics.conditional_logits`.

    Example::

        >>> from torchrec_mtl.tasks import TaskChain
        >>> marginal = np.log([[0.2 / 0.8, 0.05 / 0.95]])
        >>> odds = np.exp(conditional_log_odds(marginal, TaskChain(["click", "buy"])))
        >>> (odds / (1 + odds)).round(6).tolist()
        [[0.2, 0.25]]
    """
    columns = torch.from_numpy(np.asarray(logits, np.float64)).unbind(1)
    found = [
        column if parent is None else conditional_logits(column, columns[parent])
        for column, parent in zip(columns, tasks.parents, strict=True)
    ]
    return np.asarray(torch.stack(found, dim=1).numpy())


def divided(marginals: Array, tasks: TaskForest) -> Array:
    """Returns p(step | step before) ``[N, T]``, at most 1, from p(step) ``[N, T]``; 0 where the step before has 0.

    Example::

        >>> from torchrec_mtl.tasks import TaskChain
        >>> divided(np.array([[0.5, 0.25], [0.0, 0.0]]), TaskChain(["click", "buy"])).tolist()
        [[0.5, 0.5], [0.0, 0.0]]
    """
    before = np.stack([np.ones(len(marginals)) if p is None else marginals[:, p] for p in tasks.parents], axis=1)
    return np.asarray(np.divide(marginals, before, out=np.zeros_like(marginals), where=before > 0).clip(max=1))


def sigmoid(x: Array) -> Array:
    """Returns probabilities of log-odds, without overflow.

    Example::

        >>> sigmoid(np.array([-1e6, 0.0, 1e6])).tolist()
        [0.0, 0.5, 1.0]
    """
    return np.asarray(np.exp(-np.logaddexp(0, -np.asarray(x, np.float64))))


def multiplied(conditionals: Array, tasks: TaskForest) -> Array:
    """Returns p(step) ``[N, T]`` from p(step | step before) ``[N, T]``: the product up the funnel.

    Example::

        >>> from torchrec_mtl.tasks import TaskChain
        >>> multiplied(np.array([[0.5, 0.5]]), TaskChain(["click", "buy"])).tolist()
        [[0.5, 0.25]]
    """
    marginals = np.array(conditionals, np.float64)
    for task, parent in enumerate(tasks.parents):  # a parent comes before its children
        if parent is not None:
            marginals[:, task] *= marginals[:, parent]
    return marginals
