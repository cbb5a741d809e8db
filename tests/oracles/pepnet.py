"""PEPNet in NumPy float64; one sample at a time.

``fields`` is one sample's embedding of each field, of any dimensions. Parameters (matrices as ``torch.nn.Linear`` has
them, [out, in]); a gate is an mlp of two layers::

    pepnet = {"domain_fields": [int], "prior_fields": [int], "embedding_gate": gate or None,
              "layers": [[mlp] * L] * T, "gates": [[gate] * L] * T, "towers": [mlp] * T}
"""

from typing import Any

import numpy as np

from tests.oracles.common import Array, mlp, relu, sigmoid

GAMMA = 2.0


def gate_unit(x: Array, gate: list[tuple[Array, Array]]) -> Array:
    """Gate NU: gamma sigmoid(W' relu(W x + b) + b')."""
    return GAMMA * sigmoid(mlp(x, gate))


def split(x: Array, dims: list[int]) -> list[Array]:
    return np.split(x, np.cumsum(dims)[:-1])


def personal(x: Array, params: dict[str, Any], dims: list[int], stopped: Array) -> Array:
    """O_ep = delta * E, delta = U_ep([E(F_d); stop(E)]), where ``stopped`` is the value of stop(E)."""
    if params["embedding_gate"] is None:
        return x
    domain = [split(x, dims)[field] for field in params["domain_fields"]]
    return gate_unit(np.concatenate([*domain, stopped]), params["embedding_gate"]) * x


def pepnet(x: Array, params: dict[str, Any], dims: list[int], held: tuple[Array, Array] | None = None) -> Array:
    """Logits [T] of the embeddings ``x`` of all fields, whose dimensions are ``dims``.

    ``held`` are the values of stop(E) and stop(O_ep), by default those of ``x``. Kept while ``x`` changes, they pass no
    change on, as the gradients are meant.
    """
    stopped, stopped_personal = held or (x, personal(x, params, dims, x))
    o_ep = personal(x, params, dims, stopped)
    prior = np.concatenate([*(split(x, dims)[field] for field in params["prior_fields"]), stopped_personal])
    logits = []
    for task, layers in enumerate(params["layers"]):
        output = o_ep
        for place, layer in enumerate(layers):
            output = relu(mlp(output, layer))
            if params["prior_fields"]:
                output = gate_unit(prior, params["gates"][task][place]) * output
        logits.append(mlp(output, params["towers"][task]))
    return np.concatenate(logits)
