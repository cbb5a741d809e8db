"""The papers' equations for an over arch, on its own parameters: of any model, as the tests of each model have them."""

import numpy as np
from torch import Tensor, nn

from tests.modules import parameters
from tests.oracles import bpcm, chains, common, experts, tafe
from torchrec_mtl import models


def _tafe(arch, fields, given):
    sample_wise, indicators = given.get("sample_wise", True), given.get("task_indicators", True)
    parts = arch.extraction
    layout = parameters.generator_layers if sample_wise else parameters.self_attention_layers
    params = {
        "selectors": [parameters.mlp(selector) for selector in parts.generator.selectors] if sample_wise else [],
        "layers": layout(parts.generator),
        "adapters": parameters.adapters(parts.adapter) if indicators else [],
        "towers": parameters.towers(arch.towers),
    }
    schedule = given["schedule"]
    gamma = 10.0 if schedule == "run" else schedule[0]
    options = (gamma, given["num_heads"], given["residual"], given["selector"], sample_wise, indicators)
    return tafe.forward(fields, params, *options)


def _bpcm(arch, fields, given):
    without = [part for part in ("attention", "aggregation", "gate") if not given.get(part, True)]
    without += [] if given.get("conversion", True) else ["transition"]
    params = {
        "feature_towers": [parameters.feature_tower(tower) for tower in arch.feature_towers],
        "transitions": [parameters.conversion(step) for step in arch.conversions],
        "towers": parameters.towers(arch.towers),
    }
    return bpcm.forward(fields, params, given["num_heads"], given["aggregation_over"], without)


def _aitm(arch, x, given):
    params = {
        "f": [parameters.mlp(network) for network in arch.representations],
        "g": [parameters.mlp(network) for network in arch.information],
        "towers": parameters.towers(arch.towers),
        **(parameters.information_transfer(arch.transfer) if arch.edges else {}),
    }
    return common.per_sample(chains.aitm, x, parameters=params)


def _ddpo(arch, x, given):
    params = parameters.ddpo(arch)
    return np.array([chains.marginal_logits(chains.ddpo(row, params)[0]) for row in x])


def _cross_stitch(arch, x, given):
    layers = [parameters.cross_stitch_layer(layer) for layer in arch.layers]
    params = {"layers": layers, "towers": parameters.towers(arch.towers)}
    return common.per_sample(chains.cross_stitch, x, parameters=params)


def _esmm(arch, x, given):
    return common.per_sample(chains.esmm, x, towers=parameters.towers(arch.towers))


def _shared_bottom(arch, x, given):
    params = {"bottom": parameters.mlp(arch.bottom), "towers": parameters.towers(arch.towers)}
    return common.per_sample(experts.shared_bottom, x, **params)


def _mixture(arch, x, given):
    params = {**parameters.mixture(arch.mixture), "towers": parameters.towers(arch.towers)}
    return experts.mixture_of_experts(x, params)


def _ple(arch, x, given):
    layers = [parameters.extraction_layer(layer) for layer in arch.layers]
    return experts.ple(x, {"layers": layers, "towers": parameters.towers(arch.towers)})


def _single_task(towers, x, given):
    return np.concatenate([common.mlp(x, parameters.mlp(tower)) for tower in towers], axis=1)


EQUATIONS = {
    models.AITMArch: _aitm,
    models.BPCMArch: _bpcm,
    models.CrossStitchArch: _cross_stitch,
    models.DCMTArch: _esmm,
    models.DDPOArch: _ddpo,
    models.ESCM2Arch: _esmm,
    models.ESMMArch: _esmm,
    models.MMoEArch: _mixture,
    models.OMoEArch: _mixture,
    models.PLEArch: _ple,
    models.SharedBottomArch: _shared_bottom,
    models.TAFEArch: _tafe,
    nn.ModuleList: _single_task,
}


def logits_of(arch: nn.Module, embeddings: Tensor, given: dict) -> np.ndarray:
    """Logits ``[B, T]`` of embeddings ``[B, sum(D_f)]`` or ``[B, F, D]``; ``given`` are the arch's arguments."""
    shape = arch.shape if isinstance(arch, models.TAFEArch | models.BPCMArch) else (-1,)
    return EQUATIONS[type(arch)](arch, embeddings.detach().numpy().reshape(len(embeddings), *shape), given)
