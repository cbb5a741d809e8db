"""DBMTL in NumPy float64; one sample at a time.

``x`` is one sample's concatenated embeddings [n]. Parameters (matrices as ``torch.nn.Linear`` has them, [out, in])::

    dbmtl = {"bottom": mlp, "experts": [mlp] * n, "gates": [gate] * T, "f": [mlp] * T, "r": [mlp] * T,
             "towers": [mlp] * T}
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.oracles.common import Array, mlp
from tests.oracles.experts import expert, mixture


def dbmtl(x: Array, params: dict[str, Any], parents: Sequence[int | None]) -> Array:
    """s_t = r_t([u_t; s_parent]), u_t = f_t(h_t); h_t is f(x), or its mixture of experts; logits [T]."""
    h = expert(x, params["bottom"]) if params["bottom"] else x
    outputs = [expert(h, layers) for layers in params["experts"]]
    states: dict[int, Array] = {}

    def state(task: int) -> Array:
        if task not in states:
            own = mixture(h, outputs, params["gates"][task]) if outputs else h
            own = expert(own, params["f"][task]) if params["f"][task] else own
            parent = parents[task]
            joined = own if parent is None else np.concatenate([own, state(parent)])
            states[task] = expert(joined, params["r"][task])
        return states[task]

    return np.concatenate([mlp(state(task), tower) for task, tower in enumerate(params["towers"])])
