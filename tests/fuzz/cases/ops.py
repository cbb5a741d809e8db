"""Operations: the papers' equations in float64, for each backend that runs here."""

import numpy as np
import torch

from tests.fuzz.cases.drawn import assert_finite, integer, one_of
from tests.fuzz.cell import Case
from tests.oracles import common, tafe
from torchrec_mtl import ops

ROWS = 2


def _normal(rng, *shape):
    return torch.from_numpy(rng.normal(size=shape))


def _dims(rng):
    heads = integer(rng, 1, 2)
    return heads, heads * integer(rng, 1, 3)


def generator_weights(rng, dim, num_points, *layers):
    squares = [_normal(rng, *layers, dim, dim) for _ in range(3)]
    return ops.GeneratorWeights(
        _normal(rng, *layers, num_points, dim), *squares, _normal(rng, *layers, dim), _normal(rng, *layers, dim)
    )


def adapter_weights(rng, dim, num_tasks, *layers):
    squares = [_normal(rng, *layers, num_tasks, dim, dim) for _ in range(3)]
    rows = [_normal(rng, *layers, num_tasks, dim) for _ in range(3)]
    return ops.AdapterWeights(rows[0], *squares, *rows[1:])


def _of_layer(weights, query):
    points, key, value, out, norm, bias = (x.numpy() for x in weights)
    return {query: points, "key": key, "value": value, "out": out, "norm": {"weight": norm, "bias": bias}}


def _close(found, expected):
    if np.isfinite(expected).all():
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-8)


def _attention(rng):
    heads, dim = _dims(rng)
    return {
        "queries": _normal(rng, ROWS, 3, dim),
        "inputs": _normal(rng, ROWS, 4, dim),
        **{name: _normal(rng, dim, dim) for name in ("query_weight", "key_weight", "value_weight")},
        "num_heads": heads,
        "backend": one_of(rng, "auto", "reference"),
    }


def _judge_attention(given, result):
    arrays = {name: x.numpy() for name, x in given.items() if isinstance(x, torch.Tensor)}
    weights = {"key": arrays["key_weight"], "value": arrays["value_weight"]}
    expected = [
        common.attention(query @ arrays["query_weight"].T, memory, weights, given["num_heads"])
        for query, memory in zip(arrays["queries"], arrays["inputs"], strict=True)
    ]
    _close(result, np.stack(expected) if expected else np.empty(tuple(result.shape)))


def _layer(rng):
    heads, dim = _dims(rng)
    num_points = 3
    layer = ops.InducingLayer(generator_weights(rng, dim, num_points), heads, one_of(rng, "query", "none"))
    return {
        "inputs": _normal(rng, ROWS, 4, dim),
        "selection": torch.from_numpy(rng.random((ROWS, num_points)) * rng.integers(0, 2, (ROWS, num_points))),
        "layer": layer,
        "backend": one_of(rng, "auto", "reference", "sdpa"),
    }


def _judge_layer(given, result):
    layer = given["layer"]
    weights = _of_layer(layer.weights, "inducing_points")
    pairs = zip(given["inputs"].numpy(), given["selection"].numpy(), strict=True)
    expected = [tafe.asrg(H, z, weights, layer.num_heads, layer.residual) for H, z in pairs]
    _close(result, np.stack(expected) if expected else np.empty(tuple(result.shape)))


def _adapter(rng):
    heads, dim = _dims(rng)
    return {
        "shared": _normal(rng, ROWS, 4, dim),
        "former": one_of(rng, None, _normal(rng, ROWS, 3, dim)),
        "adapter": adapter_weights(rng, dim, 3),
        "num_heads": heads,
        "log_counts": None,
    }


def _judge_adapter(given, result):
    adapters = [_of_layer([x[t] for x in given["adapter"]], "indicator") for t in range(3)]
    former = given["former"]
    expected = [
        [
            tafe.task_adapter(Y, None if former is None else former[row, t].numpy(), adapter, given["num_heads"])
            for t, adapter in enumerate(adapters)
        ]
        for row, Y in enumerate(given["shared"].numpy())
    ]
    _close(result, np.array(expected) if expected else np.empty(tuple(result.shape)))


def _stack(rng):
    heads, dim = _dims(rng)
    num_points, num_layers = 3, integer(rng, 1, 3)
    layers = generator_weights(rng, dim, num_points, num_layers)
    residual = one_of(rng, "input", "query", "none")
    return {
        "inputs": _normal(rng, ROWS, 4, dim),
        "selection": torch.from_numpy(rng.random((ROWS, num_points)) * rng.integers(0, 2, (ROWS, num_points))),
        "stack": ops.InducingStack(
            layers, adapter_weights(rng, dim, 2, num_layers), heads, residual, masked=one_of(rng, False, True)
        ),
        "backend": one_of(rng, "auto", "reference", "sdpa", "compact"),
    }


def _judge_stack(given, result):
    stack, expected = given["stack"], []
    for H, z in zip(given["inputs"].numpy(), given["selection"].numpy(), strict=True):  # noqa: N806
        states = [None, None]
        for place, (layer, adapter) in enumerate(zip(stack.layers.layers(), stack.adapters.layers(), strict=True)):
            weights = _of_layer(layer, "inducing_points")
            masks = z if stack.masked else None
            arguments = (stack.num_heads, stack.residual, place == 0, masks if place else None)
            H = tafe.asrg(H, z, weights, *arguments)  # noqa: N806
            of_tasks = [_of_layer([x[t] for x in adapter], "indicator") for t in range(2)]
            pairs = zip(states, of_tasks, strict=True)
            states = [tafe.task_adapter(H, former, of_task, stack.num_heads, masks) for former, of_task in pairs]
        expected.append(states)
    _close(result, np.array(expected) if expected else np.empty(tuple(result.shape)))


def _judge_made_layer(given, layer):
    inputs, selection = torch.ones(ROWS, 3, 4, dtype=torch.float64), torch.ones(ROWS, 3, dtype=torch.float64)
    assert_finite(ops.inducing_layer(inputs, selection, layer, "reference"), ROWS, 3, 4)


def _judge_made_stack(given, stack):
    inputs, selection = torch.ones(ROWS, 3, 4, dtype=torch.float64), torch.ones(ROWS, 3, dtype=torch.float64)
    assert_finite(ops.inducing_stack(inputs, selection, stack, "reference"), ROWS, 2, 4)


CASES = {
    "attention": Case(ops.attention, _attention, _judge_attention),
    "inducing_layer": Case(ops.inducing_layer, _layer, _judge_layer),
    "adapter_layer": Case(ops.adapter_layer, _adapter, _judge_adapter),
    "inducing_stack": Case(ops.inducing_stack, _stack, _judge_stack),
    "InducingLayer": Case(
        ops.InducingLayer,
        lambda rng: {
            "weights": generator_weights(rng, 4, 3),
            "num_heads": one_of(rng, 1, 2),
            "residual": one_of(rng, "input", "query", "none"),
            "scale": one_of(rng, None, 0.5),
            "z_grad": one_of(rng, "gated", "full"),
        },
        _judge_made_layer,
    ),
    "InducingStack": Case(
        ops.InducingStack,
        lambda rng: {
            "layers": generator_weights(rng, 4, 3, 2),
            "adapters": adapter_weights(rng, 4, 2, 2),
            "num_heads": one_of(rng, 1, 2),
            "residual": one_of(rng, "input", "query", "none"),
            **one_of(rng, {"z_grad": "full"}, {"z_grad": "gated"}, {"masked": True}),
        },
        _judge_made_stack,
    ),
}
