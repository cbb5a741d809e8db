"""Random parameters and inputs in float64, and a module's parameters in the oracles' layout."""

import numpy as np
import torch
from torch import Tensor, nn

from torchrec_mtl.modules import BatchNorm, SoftmaxGate


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomized(module: nn.Module) -> nn.Module:
    """Moves ``module`` to float64 and its parameters away from initial zeros and ones, which could hide a term.

    Statistics too, which are buffers.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter.normal_(0, 0.6, generator=generator)
        for norm in (m for m in module.modules() if isinstance(m, BatchNorm)):
            norm.running_mean.normal_(0, 0.6, generator=generator)
            norm.running_variance.uniform_(0.1, 2, generator=generator)
    return module.eval()


def assert_close(actual: Tensor, expected, rtol: float = 1e-11, atol: float = 0.0) -> None:
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=rtol, atol=atol)


def array(x: Tensor):
    return x.detach().double().numpy()


def mlp(module: nn.Module):
    """Every linear layer of ``module``, in order, with the batch normalisation that comes after it in evaluation."""
    layers = []
    for m in module.modules():
        if isinstance(m, nn.Linear):
            layers.append((array(m.weight), 0.0 if m.bias is None else array(m.bias)))
        elif isinstance(m, BatchNorm):
            scale = array(m.weight) / np.sqrt(array(m.running_variance) + 1e-3)
            weight, bias = layers[-1]
            layers[-1] = scale[:, None] * weight, scale * (bias - array(m.running_mean)) + array(m.bias)
    return layers


def towers(module):
    return [mlp(tower) for tower in module.towers]


def attention(module):
    return {name: array(getattr(module, name).weight) for name in ("query", "key", "value")}


def norm(module):
    return {"weight": array(module.weight), "bias": array(module.bias)}


def aggregation(module):
    (weight1, bias1), (weight2, bias2) = mlp(module)
    return {"weight1": weight1, "bias1": bias1, "weight2": weight2, "bias2": bias2}


def complementary_gate(module):
    return {"aggregated": array(module.organic.weight), "attended": array(module.attended.weight)}


def feature_tower(module):
    layouts = {"attention": attention, "aggregation": aggregation, "gate": complementary_gate}
    parts = {name: getattr(module, name) for name in layouts}
    return {name: layouts[name](part) for name, part in parts.items() if part is not None}


def conversion(module):
    parameters = attention(module.attention)
    return {**parameters, "norm": norm(module.norm)} if isinstance(module.norm, nn.LayerNorm) else parameters


def block(weights, query):
    """One layer's parameters, for one task: queries, key, value, output, norm's weight and bias."""
    queries, key, value, output, weight, bias = map(array, weights)
    return {query: queries, "key": key, "value": value, "out": output, "norm": {"weight": weight, "bias": bias}}


def generator_layers(generator):
    return [block(layer, "inducing_points") for layer in generator.weights().layers()]


def self_attention_layers(stack):
    pairs = zip(stack.layers, stack.norms, strict=True)
    return [{**attention(layer), "out": array(layer.output.weight), "norm": norm(after)} for layer, after in pairs]


def adapters(adapter):
    """``adapters[layer][task]``."""
    return [[block(task, "indicator") for task in zip(*layer, strict=True)] for layer in adapter.weights().layers()]


def experts(module):
    """Each expert is an MLP."""
    return [
        [(array(w[i]), array(b[i])) for w, b in zip(module.weights, module.biases, strict=True)]
        for i in range(len(module.weights[0]))
    ]


def gates(module):
    """One entry for each gate of ``module``."""
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


def mixture(module):
    return {"experts": experts(module.experts), "gates": gates(module.gate)}


def extraction_layer(module):
    return {
        "task_experts": [experts(of_task) for of_task in module.task_experts] or [[]] * module.num_tasks,
        "shared_experts": experts(module.shared_experts),
        "gates": [gate for of_task in module.gates for gate in gates(of_task)],
    }


def fusion_layer(module):
    """Without learnt weights of native experts, theirs are 1."""
    sizes = module.num_experts[: module.num_fused]
    native = [np.ones(size) for size in sizes] if module.adds_native else None
    if module.native is not None:
        native = np.split(array(module.native), np.cumsum(sizes)[:-1])
    gates_of_units = [gate for of_unit in module.gates for gate in gates(of_unit)]
    return {"experts": [experts(of_unit) for of_unit in module.experts], "gates": gates_of_units, "native": native}


def cross_stitch_layer(module):
    """Each task's network, and ``alpha`` for each channel, even where all channels share one."""
    networks = [mlp(network)[0] for network in module.networks]
    alpha, num_channels = array(module.unit.alpha), len(networks[0][1])
    return networks, np.broadcast_to(alpha, (num_channels, *alpha.shape[-2:]))


def sluice(arch):
    layers = [([mlp(network)[0] for network in layer.networks], array(layer.unit.alpha)) for layer in arch.layers]
    return {"layers": layers, "beta": array(arch.layer_stitch.beta), "towers": towers(arch.towers)}


def lstms(module):
    """One entry for each network of ``module``."""
    arrays = [array(weight) for weight in (module.input, module.recurrent, module.bias)]
    split = [np.split(weight, 4, axis=1) for weight in arrays]
    return [
        {name: tuple(weight[gate][n] for weight in split) for gate, name in enumerate("ifog")}
        for n in range(len(arrays[0]))
    ]


def mose(arch):
    return {
        "bottom": lstms(arch.bottom)[0],
        "experts": lstms(arch.experts),
        "gates": gates(arch.gate),
        "task_lstms": lstms(arch.task_lstms),
        "towers": towers(arch.towers),
    }


def mran(arch):
    return {
        "tasks": array(arch.relations.tasks),
        "task_attention": attention(arch.relations.attention),
        "task_norm": norm(arch.relations.norm),
        "attention": attention(arch.interaction),
        "norm": norm(arch.norm),
        "query": array(arch.alignment.query.weight),
        "key": array(arch.alignment.key.weight),
        "aligned_norm": norm(arch.alignment.norm),
        "towers": towers(arch.towers),
    }


def normalized_experts(module):
    lora_parts = zip(module.feature_gate.down, module.feature_gate.up, strict=True)
    loras = [(array(down.weight), array(up.weight)) for down, up in lora_parts]
    gate, (number, width) = module.feature_gate.gate, module.shape
    values = (*module.linear.parameters(), *module.norm.parameters())
    parts = [array(value).reshape(number, width, *value.shape[1:]) for value in values]
    of_experts = [(w, b, {"weight": scale, "bias": shift}) for w, b, scale, shift in zip(*parts, strict=True)]
    return {"loras": loras, "gate": None if gate is None else array(gate.linear.weight), "experts": of_experts}


def home(arch):
    units = ("meta_experts", "experts", "task_experts")
    mixtures = {
        name: [
            {"gate": array(m.gate.linear.weight), "self_gate": array(m.self_gate.weight)} for m in getattr(arch, name)
        ]
        for name in ("meta_mixtures", "task_mixtures")
    }
    experts_of = {name: [normalized_experts(unit) for unit in getattr(arch, name)] for name in units}
    return {**experts_of, **mixtures, "towers": towers(arch.towers)}


def resflow(arch):
    layers = [[mlp(layer)[0] for layer in of_tasks] for of_tasks in arch.layers]
    return {"layers": layers, "outputs": [tower[0] for tower in towers(arch.towers)]}


def information_transfer(module):
    return {"h1": array(module.value.weight), "h2": array(module.key.weight), "h3": array(module.query.weight)}


def dbmtl(arch):
    of_experts = {"experts": [], "gates": []} if arch.mixture is None else mixture(arch.mixture)
    own = [mlp(layers) for layers in arch.representations]
    relations = [mlp(layers) for layers in arch.relations]
    return {"bottom": mlp(arch.bottom), **of_experts, "f": own, "r": relations, "towers": towers(arch.towers)}


def pepnet(arch):
    return {
        "domain_fields": getattr(arch.embedding_gate, "domain_fields", []),
        "prior_fields": arch.prior_fields,
        "embedding_gate": mlp(arch.embedding_gate) or None,
        "layers": [[mlp(layer) for layer in of_task] for of_task in arch.layers],
        "gates": [[mlp(gate) for gate in of_task] for of_task in arch.layer_gates],
        "towers": towers(arch.towers),
    }


def stem(arch):
    of_tasks = [gate for of_task in arch.gates for gate in gates(of_task)]
    return {"experts": [experts(each) for each in arch.experts], "gates": of_tasks, "towers": towers(arch.towers)}


def ddpo(arch):
    """Of a `DDPOArch`, as `tests.oracles.chains.ddpo` has them."""
    transfers = [
        {
            "click": mlp(step.click_information),
            "conversion": mlp(step.conversion_information),
            "T_o": information_transfer(step.click_transfer),
            "T_c": information_transfer(step.conversion_transfer),
            "theta_t": mlp(step.fusion),
        }
        for step in arch.transfers
    ]
    return {
        "f": [mlp(network) for network in arch.representations],
        "conversions": [mlp(network) for network in arch.conversions],
        "transfers": transfers,
        "towers": towers(arch.towers),
        "conversion_towers": [mlp(tower) for tower in arch.conversion_towers],
    }
