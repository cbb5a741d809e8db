"""Shared-Bottom, experts and their gates in NumPy float64: OMoE and MMoE, PLE, DSelect-k; one sample at a time.

B samples, T tasks. Parameters (matrices as ``torch.nn.Linear`` has them, ``[out, in]``)::

    shared_bottom = {"bottom": mlp, "towers": [mlp] * T}
    mixture = {"experts": [mlp] * n, "gates": [gate] * T, "towers": [mlp] * T}       # OMoE: one gate
    ple = {"layers": [layer] * N, "towers": [mlp] * T}
    layer = {"task_experts": [[mlp] * m_k] * T, "shared_experts": [mlp] * m_s,
             "gates": [gate] * (T + 1)}                                              # the last one is the shared gate;
                                                                                     # T in the last layer
    gate = {"weight": [n, in]}                                                       # softmax
    gate = {"codes": [k, m, in] or [k, m], "mixture": [k, in] or [k],                # DSelect-k: on the input, or not
            "num_experts": n, "gamma": float}
"""
# ruff: noqa: N806  (the papers' letters)

import itertools
from typing import Any

import numpy as np

from tests.oracles.common import Array, mlp, relu, softmax
from tests.oracles.tafe import smooth_step


def expert(x: Array, layers: list[tuple[Array, Array]]) -> Array:
    """f_i(x): an MLP with ReLU after every layer, the last included."""
    return relu(mlp(x, layers))


def shared_bottom(x: Array, bottom: list[tuple[Array, Array]], towers: list[Any]) -> Array:
    """y_k = h^k(f(x)), with one f for all tasks; [T]."""
    return np.concatenate([mlp(expert(x, bottom), tower) for tower in towers])


def single_expert_selector(z: Array, num_experts: int, gamma: float) -> Array:
    """DSelect-k: r(z)_i, the product of S(z_j) over the digits j that are 1 in i's code, and of 1 - S(z_j) over others.

    Digit j of code c is ``c // 2^j % 2``. A code c beyond the last of n experts means expert c - n.
    """
    S = smooth_step(z, gamma)
    r = np.zeros(num_experts)
    for bits in itertools.product([0, 1], repeat=len(z)):
        code = sum(bit * 2**j for j, bit in enumerate(bits))
        factors = [S[j] if bit else 1.0 - S[j] for j, bit in enumerate(bits)]
        r[code if code < num_experts else code - num_experts] += np.prod(factors)
    return r


def gate_weights(x: Array, gate: dict[str, Any]) -> Array:
    """g(x) = softmax(W_g x), or DSelect-k: q(x) = sum_i softmax(alpha)_i r(z^i); [n]."""
    if "weight" in gate:
        return softmax(gate["weight"] @ x)
    z, alpha = gate["codes"], gate["mixture"]
    if alpha.ndim == 2:  # conditional on the input
        z, alpha = z @ x, alpha @ x
    shares = softmax(alpha)
    selectors = [single_expert_selector(z_i, gate["num_experts"], gate["gamma"]) for z_i in z]
    return sum(share * r for share, r in zip(shares, selectors, strict=True))


def mixture(x: Array, outputs: list[Array], gate: dict[str, Any]) -> Array:
    """sum_i g(x)_i f_i(x)."""
    return sum(weight * output for weight, output in zip(gate_weights(x, gate), outputs, strict=True))


def mixture_of_experts(inputs: Array, params: dict[str, Any]) -> Array:
    """MMoE section 4.2: logits [B, T] of inputs [B, in]; with a single gate OMoE, section 4.1."""
    logits = []
    for x in inputs:
        outputs = [expert(x, layers) for layers in params["experts"]]
        gates = params["gates"] * (len(params["towers"]) if len(params["gates"]) == 1 else 1)
        mixtures = [mixture(x, outputs, gate) for gate in gates]
        logits.append([mlp(f, tower)[0] for f, tower in zip(mixtures, params["towers"], strict=True)])
    return np.array(logits)


def extraction_layer(states: list[Array], layer: dict[str, Any]) -> list[Array]:
    """PLE eq. (5): the states g^{k,j} of every task k and, if the layer has a shared gate, the shared state.

    ``states`` are those of the layer before. A task's gate sees the task's experts, then the shared ones: eq. (3). The
    shared gate sees all experts.
    """
    own = [[expert(states[k], layers) for layers in experts] for k, experts in enumerate(layer["task_experts"])]
    shared = [expert(states[-1], layers) for layers in layer["shared_experts"]]
    seen = [of_task + shared for of_task in own] + [[*itertools.chain(*own), *shared]]
    return [mixture(states[k], seen[k], gate) for k, gate in enumerate(layer["gates"])]


def ple(inputs: Array, params: dict[str, Any]) -> Array:
    """PLE eqs. (1)-(6): logits [B, T] of inputs [B, in]."""
    logits = []
    for x in inputs:
        states = [x] * (len(params["towers"]) + 1)
        for layer in params["layers"]:
            states = extraction_layer(states, layer)
        logits.append([mlp(g, tower)[0] for g, tower in zip(states, params["towers"], strict=True)])
    return np.array(logits)
