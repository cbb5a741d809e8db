"""STEM-Net in NumPy float64; one sample at a time.

Parameters (matrices as ``torch.nn.Linear`` has them, [out, in])::

    stem = {"experts": [[mlp] * m] * T + [[mlp] * m_s], "gates": [gate] * T, "towers": [mlp] * T}
"""

from typing import Any

import numpy as np

from tests.oracles.common import Array, mlp
from tests.oracles.experts import expert, mixture


def stem(x: Array, params: dict[str, Any], held: Array | None = None) -> Array:
    """Logits [T] of ``x`` [T + 1, n]: the embeddings of each task, and then the shared ones.

    A task's tower reads a mixture of all experts, by a gate on the sum of the task's and the shared embeddings. Those
    of other tasks read ``held``, by default ``x``; kept while ``x`` changes, it passes no change on, as the gradients
    are meant.
    """
    held = x if held is None else held
    *_, shared = x
    logits = []
    for task, (gate, tower) in enumerate(zip(params["gates"], params["towers"], strict=True)):
        outputs = []
        for other, experts in enumerate(params["experts"]):
            read = x if other in (task, len(x) - 1) else held
            outputs += [expert(read[other], layers) for layers in experts]
        logits.append(mlp(mixture(x[task] + shared, outputs, gate), tower))
    return np.concatenate(logits)
