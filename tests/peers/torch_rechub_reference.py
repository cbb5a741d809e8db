"""torch-rechub's models, recorded: ``python torch_rechub_reference.py FOLDER``.

Unlike the papers' and ours, its MLPs normalise every layer by its batch, which is taken out here; its gates have
biases, set to 0; each step of AITM has a transfer of its own, which here holds the first one's weights.
"""

import sys
from pathlib import Path

from recording import (
    EMBEDDING_DIM,
    EXPERT_SIZES,
    FIELDS,
    NUM_EXPERTS,
    NUM_IDS,
    NUM_TASKS,
    TOWER_SIZES,
    draw,
    ids,
    layers,
    record,
)
from torch import nn
from torch_rechub.basic.features import SparseFeature
from torch_rechub.basic.layers import MLP
from torch_rechub.models.multi_task import AITM, ESMM, MMOE, PLE, SharedBottom

FEATURES = [SparseFeature(name, vocab_size=NUM_IDS, embed_dim=EMBEDDING_DIM) for name in FIELDS]
TASKS = ["classification"] * NUM_TASKS
EXPERT, TOWER = {"dims": list(EXPERT_SIZES)}, {"dims": list(TOWER_SIZES)}
TOWERS = [TOWER] * NUM_TASKS


def shared_bottom():
    model = prepared(SharedBottom(FEATURES, TASKS, EXPERT, TOWERS))
    return model, {"bottom": layers(model.bottom_mlp), "towers": all_layers(model.towers)}


def mmoe():
    model = prepared(MMOE(FEATURES, TASKS, NUM_EXPERTS, EXPERT, TOWERS))
    parameters = {"experts": all_layers(model.experts), "gates": all_matrices(model.gates)}
    return model, {**parameters, "towers": all_layers(model.towers)}


def ple():
    model = prepared(PLE(FEATURES, TASKS, 2, NUM_EXPERTS, NUM_EXPERTS, EXPERT, TOWERS))
    extraction = []
    for cgc in model.cgc_layers:
        own = all_layers(cgc.experts_specific)
        extraction.append(
            {
                "task_experts": [own[t * NUM_EXPERTS : (t + 1) * NUM_EXPERTS] for t in range(NUM_TASKS)],
                "shared_experts": all_layers(cgc.experts_shared),
                "gates": all_matrices(
                    [*cgc.gates_specific, *([cgc.gate_shared] if hasattr(cgc, "gate_shared") else [])]
                ),
            }
        )
    return model, {"layers": extraction, "towers": all_layers(model.towers)}


def esmm():
    model = prepared(ESMM(FEATURES[:2], FEATURES[2:], TOWER, TOWER))
    return model, {"towers": all_layers([model.tower_ctr, model.tower_cvr])}


def aitm():
    model = prepared(AITM(FEATURES, NUM_TASKS, EXPERT, TOWERS))
    for step in model.aits[1:]:
        step.load_state_dict(model.aits[0].state_dict())
    transfer = {name: getattr(step, f"{name[0]}_layer").weight.detach() for name in ("query", "key", "value")}
    parameters = {"representations": all_layers(model.bottoms), "information": all_layers(model.info_gates)}
    return model, {**parameters, "transfer": transfer, "towers": all_layers(model.towers)}


def prepared(model):
    for module in model.modules():
        if isinstance(module, MLP):
            module.mlp = nn.Sequential(*(layer for layer in module.mlp if not isinstance(layer, nn.BatchNorm1d)))
    draw(model)
    for name, parameter in model.named_parameters():
        if "gate" in name and "info_gates" not in name and name.endswith("bias"):
            nn.init.zeros_(parameter)
    return model


def all_layers(modules):
    return [layers(module) for module in modules]


def all_matrices(modules):
    return [weight for module in modules for weight, _ in layers(module)]


if __name__ == "__main__":
    rows = dict(zip(FIELDS, ids().T, strict=True))
    for make in (shared_bottom, mmoe, ple, esmm, aitm):
        model, parameters = make()
        probabilities = model(rows)
        if make is esmm:  # it gives P(purchase | click) first
            probabilities = probabilities[:, 1:]
        embeddings = model.embedding(rows, FEATURES, squeeze_dim=True)
        record(Path(sys.argv[1]) / f"{make.__name__}.pt", parameters, embeddings, probabilities)
