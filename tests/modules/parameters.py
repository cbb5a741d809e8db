"""A module's parameters in the oracles' layout."""

import numpy as np
from torch import Tensor, nn

from torchrec_mtl.modules import SoftmaxGate


def array(x: Tensor):
    return x.detach().double().numpy()


def mlp(module: nn.Module):
    """Every linear layer inside, in order."""
    return [(array(m.weight), array(m.bias)) for m in module.modules() if isinstance(m, nn.Linear)]


def attention(module):
    return {name: array(getattr(module, name).weight) for name in ("query", "key", "value")}


def norm(module):
    return {"weight": array(module.weight), "bias": array(module.bias)}


def feature_tower(module):
    parameters = {}
    if module.attention is not None:
        parameters["attention"] = attention(module.attention)
    if module.aggregation is not None:
        (weight1, bias1), (weight2, bias2) = mlp(module.aggregation)
        parameters["aggregation"] = {"weight1": weight1, "bias1": bias1, "weight2": weight2, "bias2": bias2}
    if module.gate is not None:
        parameters["gate"] = {
            "aggregated": array(module.gate.organic.weight),
            "attended": array(module.gate.attended.weight),
        }
    return parameters


def conversion(module):
    parameters = attention(module.attention)
    if isinstance(module.norm, nn.LayerNorm):
        parameters["norm"] = norm(module.norm)
    return parameters


def bpcm(arch):
    return {
        "feature_towers": [feature_tower(tower) for tower in arch.feature_towers],
        "transitions": [conversion(step) for step in arch.conversions],
        "towers": [mlp(tower) for tower in arch.towers.towers],
    }


def block(weights, query):
    """Of one layer, for one task: queries, key, value, output, norm's weight and bias."""
    queries, key, value, output, weight, bias = map(array, weights)
    return {query: queries, "key": key, "value": value, "out": output, "norm": {"weight": weight, "bias": bias}}


def interactions(generator):
    return [block(layer, "inducing_points") for layer in generator.weights().layers()]


def self_attention(module, layer_norm):
    return {**attention(module), "out": array(module.output.weight), "norm": norm(layer_norm)}


def adapters(adapter):
    """``adapters[layer][task]``."""
    return [[block(task, "indicator") for task in zip(*layer, strict=True)] for layer in adapter.weights().layers()]


def tafe(arch):
    generator, adapter = arch.extraction.generator, arch.extraction.adapter
    if hasattr(generator, "selectors"):
        layers = interactions(generator)
        selectors = [mlp(selector) for selector in generator.selectors]
    else:
        layers = [self_attention(*pair) for pair in zip(generator.layers, generator.norms, strict=True)]
        selectors = []
    return {
        "selectors": selectors,
        "layers": layers,
        "adapters": adapters(adapter) if hasattr(adapter, "indicators") else [],
        "towers": [mlp(tower) for tower in arch.towers.towers],
    }


def experts(module):
    """Each expert an MLP."""
    return [
        [(array(w[i]), array(b[i])) for w, b in zip(module.weights, module.biases, strict=True)]
        for i in range(len(module.weights[0]))
    ]


def gates(module):
    """Each of a module's gates."""
    if isinstance(module, SoftmaxGate):
        weights = array(module.linear.weight)
        return [{"weight": weight} for weight in weights.reshape(-1, module.num_experts, weights.shape[1])]
    num_gates, num_selected = module.shape
    inputs = module.mixture.shape[1:]
    codes = array(module.codes).reshape(num_gates, num_selected, module.num_digits, *inputs)
    mixture = array(module.mixture).reshape(num_gates, num_selected, *inputs)
    return [
        {"codes": of_gate, "mixture": weights, "num_experts": module.num_experts, "gamma": module.gamma}
        for of_gate, weights in zip(codes, mixture, strict=True)
    ]


def mixture(arch):
    return {
        "experts": experts(arch.mixture.experts),
        "gates": gates(arch.mixture.gate),
        "towers": [mlp(tower) for tower in arch.towers.towers],
    }


def ple(arch):
    return {
        "layers": [
            {
                "task_experts": [experts(of_task) for of_task in layer.task_experts] or [[]] * arch.num_tasks,
                "shared_experts": experts(layer.shared_experts),
                "gates": [gate for module in layer.gates for gate in gates(module)],
            }
            for layer in arch.layers
        ],
        "towers": [mlp(tower) for tower in arch.towers.towers],
    }


def towers(module):
    return [mlp(tower) for tower in module.towers]


def cross_stitch(arch):
    """The oracle has an ``alpha`` a channel, whether or not they are one."""
    alphas = [array(layer.unit.alpha) for layer in arch.layers]
    widths = [mlp(layer.networks[0])[0][0].shape[0] for layer in arch.layers]
    return {
        "layers": [[mlp(network)[0] for network in layer.networks] for layer in arch.layers],
        "alphas": [np.broadcast_to(alpha, (w, *alpha.shape[-2:])) for alpha, w in zip(alphas, widths, strict=True)],
        "towers": towers(arch.towers),
    }


def aitm(arch):
    return {
        "f": [mlp(network) for network in arch.representations],
        "g": [mlp(network) for network in arch.information],
        "h1": array(arch.transfer.value.weight),
        "h2": array(arch.transfer.key.weight),
        "h3": array(arch.transfer.query.weight),
        "towers": towers(arch.towers),
    }
