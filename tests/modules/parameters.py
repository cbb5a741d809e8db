"""A module's parameters in the oracles' layout."""

from torch import Tensor, nn


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


def interaction(module):
    return {
        "inducing_points": array(module.inducing_points),
        "key": array(module.key.weight),
        "value": array(module.value.weight),
        "out": array(module.output.weight),
        "norm": norm(module.norm),
    }


def self_attention(module, layer_norm):
    return {**attention(module), "out": array(module.output.weight), "norm": norm(layer_norm)}


def adapters(layer):
    return [
        {
            "indicator": array(layer.indicators[task]),
            "key": array(layer.key_weight[task]),
            "value": array(layer.value_weight[task]),
            "out": array(layer.output_weight[task]),
            "norm": {"weight": array(layer.norm_weight[task]), "bias": array(layer.norm_bias[task])},
        }
        for task in range(len(layer.indicators))
    ]


def tafe(arch):
    generator, adapter = arch.generator, arch.adapter
    if hasattr(generator, "selectors"):
        layers = [interaction(layer) for layer in generator.layers]
        selectors = [mlp(selector) for selector in generator.selectors]
    else:
        layers = [self_attention(*pair) for pair in zip(generator.layers, generator.norms, strict=True)]
        selectors = []
    return {
        "selectors": selectors,
        "layers": layers,
        "adapters": [adapters(layer) for layer in getattr(adapter, "layers", [])],
        "towers": [mlp(tower) for tower in arch.towers.towers],
    }
