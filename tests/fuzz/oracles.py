"""The papers' equations for an over arch, on its own parameters: of any model, as the tests of each model have them."""

import numpy as np
from torch import Tensor, nn

from tests.modules import parameters
from tests.oracles import adatt, bpcm, chains, common, dbmtl, experts, home, mose, mran, pepnet, sluice, stem, tafe
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
    logits = tafe.forward(fields, params, *options, masked=given["selection"] == "mask")
    if given.get("probabilities") != "conditional":
        return logits
    ways = [[*reversed(given["tasks"].ancestors(t)), t] for t in range(len(given["tasks"]))]
    return np.array([[chains.marginal_logits(row[way])[-1] for way in ways] for row in logits])


def _bpcm(arch, fields, given):
    without = [part for part in ("attention", "aggregation", "gate") if not given.get(part, True)]
    without += [] if given.get("conversion", True) else ["transition"]
    params = {
        "feature_towers": [parameters.feature_tower(tower) for tower in arch.feature_towers],
        "transitions": [parameters.conversion(step) for step in arch.conversions],
        "towers": parameters.towers(arch.towers),
    }
    options = (given["num_heads"], given["aggregation_over"], without, given["attends_to"] == "both")
    return bpcm.forward(fields, params, *options)


def _aitm(arch, x, given):
    params = {
        "f": [parameters.mlp(network) for network in arch.representations],
        "g": [parameters.mlp(network) for network in arch.information],
        "towers": parameters.towers(arch.towers),
        **(parameters.information_transfer(arch.transfer) if arch.edges else {}),
    }
    return common.per_sample(chains.aitm, x, parameters=params)


def _adatt(arch, x, given):
    layers = [parameters.fusion_layer(layer) for layer in arch.layers]
    return adatt.adatt(x, {"layers": layers, "towers": parameters.towers(arch.towers)})


def _ddpo(arch, x, given):
    params = parameters.ddpo(arch)
    return np.array([chains.marginal_logits(chains.ddpo(row, params)[0]) for row in x])


def _cross_stitch(arch, x, given):
    layers = [parameters.cross_stitch_layer(layer) for layer in arch.layers]
    params = {"layers": layers, "towers": parameters.towers(arch.towers)}
    return common.per_sample(chains.cross_stitch, x, parameters=params)


def _sluice(arch, x, given):
    params, num_subspaces = parameters.sluice(arch), given["num_subspaces"]
    return common.per_sample(sluice.sluice, x, parameters=params, num_subspaces=num_subspaces)


def _home(arch, x, given):
    return common.per_sample(home.home, x, params=parameters.home(arch), categories=arch.categories)


def _esmm(arch, x, given):
    return common.per_sample(chains.esmm, x, towers=parameters.towers(arch.towers))


def _resflow(arch, x, given):
    options = {
        "parents": (None, *range(len(arch.towers.towers) - 1)),
        "layer_links": given.get("layer_links", True),
        "logit_links": given.get("logit_links", True),
    }
    return common.per_sample(chains.resflow, x, parameters=parameters.resflow(arch), **options)


def _shared_bottom(arch, x, given):
    params = {"bottom": parameters.mlp(arch.bottom), "towers": parameters.towers(arch.towers)}
    return common.per_sample(experts.shared_bottom, x, **params)


def _mixture(arch, x, given):
    params = {**parameters.mixture(arch.mixture), "towers": parameters.towers(arch.towers)}
    return experts.mixture_of_experts(x, params)


def _mose(arch, fields, given):
    return common.per_sample(mose.mose, fields, params=parameters.mose(arch))


def _mran(arch, fields, given):
    return common.per_sample(mran.mran, fields, params=parameters.mran(arch), num_heads=given["num_heads"])


def _ple(arch, x, given):
    layers = [parameters.extraction_layer(layer) for layer in arch.layers]
    return experts.ple(x, {"layers": layers, "towers": parameters.towers(arch.towers)})


def _dbmtl(arch, x, given):
    return common.per_sample(dbmtl.dbmtl, x, params=parameters.dbmtl(arch), parents=arch.parents)


def _pepnet(arch, x, given):
    return common.per_sample(pepnet.pepnet, x, params=parameters.pepnet(arch), dims=arch.field_dims)


def _stem(arch, x, given):
    inputs = x.reshape(len(x), arch.num_tasks + 1, -1)
    return common.per_sample(stem.stem, inputs, params=parameters.stem(arch))


def _single_task(towers, x, given):
    return np.concatenate([common.mlp(x, parameters.mlp(tower)) for tower in towers], axis=1)


EQUATIONS = {
    models.AITMArch: _aitm,
    models.AdaTTArch: _adatt,
    models.BPCMArch: _bpcm,
    models.CrossStitchArch: _cross_stitch,
    models.DBMTLArch: _dbmtl,
    models.DCMTArch: _esmm,
    models.DDPOArch: _ddpo,
    models.ESCM2Arch: _esmm,
    models.ESMMArch: _esmm,
    models.HoMEArch: _home,
    models.MMoEArch: _mixture,
    models.MRANArch: _mran,
    models.MoSEArch: _mose,
    models.OMoEArch: _mixture,
    models.PEPNetArch: _pepnet,
    models.PLEArch: _ple,
    models.ResFlowArch: _resflow,
    models.STEMArch: _stem,
    models.SharedBottomArch: _shared_bottom,
    models.SluiceArch: _sluice,
    models.TAFEArch: _tafe,
    nn.ModuleList: _single_task,
}


def logits_of(arch: nn.Module, embeddings: Tensor, given: dict) -> np.ndarray:
    """Logits ``[B, T]`` of embeddings ``[B, sum(D_f)]`` or ``[B, F, D]``; ``given`` are the arch's arguments."""
    shape = getattr(arch, "shape", (-1,))
    return EQUATIONS[type(arch)](arch, embeddings.detach().numpy().reshape(len(embeddings), *shape), given)
