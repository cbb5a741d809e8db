"""TAFE's equations in NumPy float64: one function for each equation, one sample at a time.

F fields, d embedding dimension, K inducing points, L layers, T tasks, B samples, m heads of d_h = d / m
columns. ``H`` is one sample's field embeddings [F, d]. Head j has the columns j * d_h to (j + 1) * d_h of
``inducing_points`` and of queries, and the same rows of ``key`` and ``value``.

Parameters of the whole model (matrices as ``torch.nn.Linear`` has them, ``[out, in]``; only MLPs and LayerNorms have
biases)::

    {"selectors": [mlp] or [mlp] * L,             # one for all layers, or one for each; F * d -> ... -> K
     "layers": [layer] * L,
     "adapters": [[adapter] * T] * L,             # adapters[layer][task], or [task * I + indicator]
     "towers": [mlp] * T}                         # d -> ... -> 1

    layer = {"inducing_points": [K, d], "key": [d, d], "value": [d, d], "out": [d, d], "norm": norm}
            without ASRG, "query": [d, d] replaces "inducing_points"
    adapter = {"indicator": [d], "key": [d, d], "value": [d, d], "out": [d, d], "norm": norm}
    norm = {"weight": [d], "bias": [d]}
    mlp = [(weight, bias), ...]

The "selectors" may be missing without ASRG, the "adapters" without TSA.
"""
# ruff: noqa: N803, N806  (the papers' letters)

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.oracles import losses
from tests.oracles.common import Array, attention, layer_norm, mlp


def flatten(H: Array) -> Array:
    """TAFE eq. (13): x = [x_1, ..., x_F], the fields concatenated; [F * d]."""
    return np.concatenate(list(H))


def selector(H: Array, layers: list[tuple[Array, Array]]) -> Array:
    """TAFE eq. (14): z = MLP(H) on the flattened input embeddings; [K]."""
    return mlp(flatten(H), layers)


def gamma_schedule(step: float, start: float = 10.0, slope: float = 2e-4, floor: float = 1e-3) -> float:
    """TAFE, after eq. (16): gamma = max(10 - 2e-4 step, 1e-3)."""
    return max(start - slope * step, floor)


def smooth_step(z: Array, gamma: float) -> Array:
    """TAFE eqs. (15)-(16): f_D, exactly 0 up to -gamma / 2, exactly 1 from gamma / 2, cubic in between."""
    activated = np.empty_like(z, dtype=np.float64)
    for index, x in np.ndenumerate(z):
        if x <= -gamma / 2:
            activated[index] = 0.0
        elif x >= gamma / 2:
            activated[index] = 1.0
        else:
            activated[index] = -2.0 / gamma**3 * x**3 + 3.0 / (2.0 * gamma) * x + 0.5
    return activated


def modified_query(inducing_points: Array, z: Array) -> Array:
    """TAFE eq. (17): each inducing point times its scalar of z, the same for every head; [K, d]."""
    return np.stack([point * scalar for point, scalar in zip(inducing_points, z, strict=True)])


def projected_attention(
    query: Array, memory: Array, weights: dict[str, Any], num_heads: int, shares: Array | None = None
) -> Array:
    """TAFE eqs. (18)-(19): O = concat(O_1, ..., O_m) W_O, with the query not projected; [Q, d]."""
    return attention(query, memory, weights, num_heads, shares) @ weights["out"].T


def inducing_attention(
    H: Array, z: Array, layer: dict[str, Any], num_heads: int = 2, shares: Array | None = None
) -> Array:
    """TAFE eqs. (17)-(19): attention of the K selected points to the fields; [K, d]."""
    return projected_attention(modified_query(layer["inducing_points"], z), H, layer, num_heads, shares)


def asrg(
    H: Array,
    z: Array,
    layer: dict[str, Any],
    num_heads: int = 2,
    residual: str = "input",
    first: bool = True,
    shares: Array | None = None,
) -> Array:
    """TAFE eqs. (17)-(20), one layer: Y = LayerNorm(O + residual); [K, d].

    ``residual`` is "input": the layer's input ``H`` (the former Y), except in the first layer, where the input has F
    rows and O has K, so it is the modified query; or "query": the modified query in every layer; or "none". ``shares``
    are the former z where it masks, section 4.4.
    """
    assert residual in ("input", "query", "none"), residual
    Y = inducing_attention(H, z, layer, num_heads, shares)
    if residual == "query" or (residual == "input" and first):
        Y = Y + modified_query(layer["inducing_points"], z)
    elif residual == "input":
        Y = Y + H
    return layer_norm(Y, layer["norm"])


def self_attention_layer(H: Array, layer: dict[str, Any], num_heads: int = 2) -> Array:
    """TAFE section 4.3, without ASRG: LayerNorm(H + multi-head self-attention of H); [F, d]."""
    return layer_norm(H + projected_attention(H @ layer["query"].T, H, layer, num_heads), layer["norm"])


def task_adapter(
    Y: Array, former: Array | None, adapter: dict[str, Any], num_heads: int = 2, shares: Array | None = None
) -> Array:
    """TAFE eqs. (21)-(22): T^l = LayerNorm(T^{l-1} + Attention(a, Y, Y)) for one task and layer; [d].

    ``former`` is T^{l-1}, None in the first layer. ``Y`` has any number of rows.
    """
    F = projected_attention(adapter["indicator"][None, :], Y, adapter, num_heads, shares)[0]
    if former is not None:
        F = former + F
    return layer_norm(F[None, :], adapter["norm"])[0]


def selections(H: Array, params: dict[str, Any], gamma: float, selector_kind: str = "shared") -> list[Array]:
    """TAFE eqs. (13)-(16): the activated z [K] for each of the L layers, always from the input H."""
    num_layers = len(params["layers"])
    assert len(params["selectors"]) == {"shared": 1, "per_layer": num_layers}[selector_kind]
    activated = [smooth_step(selector(H, layers), gamma) for layers in params["selectors"]]
    return activated * num_layers if selector_kind == "shared" else activated


def forward(
    embeddings: Array,
    params: dict[str, Any],
    gamma: float = 10.0,
    num_heads: int = 2,
    residual: str = "input",
    selector_kind: str = "shared",
    with_asrg: bool = True,
    with_tsa: bool = True,
    masked: bool = False,
) -> Array:
    """TAFE eqs. (13)-(22) and the towers: logits [B, T] from field embeddings [B, F, d].

    ``gamma`` is the current width of f_D. With several indicators a task, there is an adapter for each, those of a task
    side by side, and its tower reads their states one after the other. Without TSA every tower reads the mean over the
    rows of the last Y. If ``masked``, rows count as keys, and in this mean, by their z.
    """
    logits = []
    for H in embeddings:
        z = selections(H, params, gamma, selector_kind) if with_asrg else []
        Y, masked = H, masked and with_asrg
        states: list[Any] = [None] * len(params["adapters"][0] if with_tsa else params["towers"])
        for i, layer in enumerate(params["layers"]):
            if with_asrg:
                Y = asrg(Y, z[i], layer, num_heads, residual, i == 0, z[i - 1] if masked and i else None)
            else:
                Y = self_attention_layer(Y, layer, num_heads)
            if with_tsa:
                pairs = zip(states, params["adapters"][i], strict=True)
                shares = z[i] if masked else None
                states = [task_adapter(Y, former, adapter, num_heads, shares) for former, adapter in pairs]
        shares = z[-1] if masked else np.ones(len(Y))
        inputs = states if with_tsa else [shares @ Y / max(shares.sum(), 1e-300)] * len(states)
        of_tasks = np.reshape(inputs, (len(params["towers"]), -1))
        logits.append([mlp(x, tower)[0] for x, tower in zip(of_tasks, params["towers"], strict=True)])
    return np.array(logits)


def objective(
    predictions: Array,
    labels: Array,
    task_weights: Sequence[float] | None = None,
    dependence_weight: float = 1.0,
    weights: Array | None = None,
) -> float:
    """TAFE eqs. (25) and (29): L = L_M-Task + dependence_weight * L_D-Task, from probabilities [B, T]."""
    main = losses.cross_entropy(predictions, labels, weights, task_weights)
    return main + dependence_weight * losses.dependence(predictions, labels, weights)
