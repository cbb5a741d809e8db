"""AdaTT in NumPy float64, one sample at a time (Li et al., KDD 2023, section 3).

B samples, T tasks. Parameters (matrices as ``torch.nn.Linear`` has them, ``[out, in]``)::

    adatt = {"layers": [layer] * L, "towers": [mlp] * T}
    layer = {"experts": [[mlp] * m_u] * U,      # units: the tasks, then the shared one if there is one
             "gates": [gate] * V,               # of the units that fuse, see `tests.oracles.experts`
             "native": [v [m_u]] * V or None}   # None: without the linear combination of native experts
"""
# ruff: noqa: N806  (the paper's letters)

import itertools
from typing import Any

import numpy as np

from tests.oracles.common import Array, mlp
from tests.oracles.experts import expert, gate_weights


def fusion_layer(states: list[Array], layer: dict[str, Any]) -> list[Array]:
    """Eq. (7): f_u = G_u^T E + v_u^T E_u for every unit that fuses."""
    E = [[expert(state, layers) for layers in of_unit] for state, of_unit in zip(states, layer["experts"], strict=True)]
    fused = []
    for unit, gate in enumerate(layer["gates"]):
        G = gate_weights(states[unit], gate)
        f = sum(g * e for g, e in zip(G, itertools.chain(*E), strict=True))  # eq. (9)
        if layer["native"] is not None:
            f = f + sum(v * e for v, e in zip(layer["native"][unit], E[unit], strict=True))  # eq. (8)
        fused.append(f)
    return fused


def adatt(inputs: Array, params: dict[str, Any]) -> Array:
    """Eqs. (1)-(3): logits [B, T] of inputs [B, in]."""
    logits = []
    for x in inputs:
        states = [x] * len(params["layers"][0]["experts"])
        for layer in params["layers"]:
            states = fusion_layer(states, layer)
        logits.append([mlp(f, tower)[0] for f, tower in zip(states, params["towers"], strict=True)])
    return np.array(logits)
