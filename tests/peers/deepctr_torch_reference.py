"""DeepCTR-Torch's models, recorded: ``python deepctr_torch_reference.py FOLDER``.

Its gates are MLPs by default and linear here, as the papers have them. Its last layer's bias is in `PredictionLayer`,
of which ESMM has one for both tasks.
"""

import sys
from pathlib import Path

from deepctr_torch.inputs import SparseFeat, combined_dnn_input
from deepctr_torch.models.multitask import ESMM, MMOE, PLE, SharedBottom
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

COLUMNS = [SparseFeat(name, vocabulary_size=NUM_IDS, embedding_dim=EMBEDDING_DIM) for name in FIELDS]
TASKS = {"task_names": [f"y{t}" for t in range(NUM_TASKS)], "task_types": ["binary"] * NUM_TASKS}
TOWERS = {"tower_dnn_hidden_units": TOWER_SIZES}
EXPERTS = {"expert_dnn_hidden_units": EXPERT_SIZES, "gate_dnn_hidden_units": ()}


def shared_bottom():
    model = draw(SharedBottom(COLUMNS, bottom_dnn_hidden_units=EXPERT_SIZES, **TOWERS, **TASKS))
    return model, {"bottom": layers(model.bottom_dnn), "towers": towers(model)}


def mmoe():
    model = draw(MMOE(COLUMNS, num_experts=NUM_EXPERTS, **EXPERTS, **TOWERS, **TASKS))
    gates = matrices(model.gate_dnn_final_layer)
    return model, {"experts": all_layers(model.expert_dnn), "gates": gates, "towers": towers(model)}


def ple():
    numbers = {"num_levels": 2, "shared_expert_num": NUM_EXPERTS, "specific_expert_num": NUM_EXPERTS}
    model = draw(PLE(COLUMNS, **numbers, **EXPERTS, **TOWERS, **TASKS))
    extraction = [
        {
            "task_experts": [all_layers(of_task) for of_task in model.specific_experts[level]],
            "shared_experts": all_layers(model.shared_experts[level][0]),
            # the last level's shared gate is computed, and read by nobody
            "gates": matrices([*model.specific_gate_dnn_final_layer[level], model.shared_gate_dnn_final_layer[level]]),
        }
        for level in range(2)
    ]
    extraction[-1]["gates"].pop()
    return model, {"layers": extraction, "towers": towers(model)}


def esmm():
    model = draw(ESMM(COLUMNS, **TOWERS))
    outputs = [(model.ctr_dnn, model.ctr_dnn_final_layer), (model.cvr_dnn, model.cvr_dnn_final_layer)]
    return model, {"towers": [tower(hidden, last, model.out) for hidden, last in outputs]}


def tower(hidden, last, output):
    return [*layers(hidden), (last.weight.detach(), output.bias.detach())]


def towers(model):
    return list(map(tower, model.tower_dnn, model.tower_dnn_final_layer, model.out))


def all_layers(modules):
    return [layers(module) for module in modules]


def matrices(modules):
    return [module.weight.detach() for module in modules]


if __name__ == "__main__":
    for make in (shared_bottom, mmoe, ple, esmm):
        model, parameters = make()
        embeddings, _ = model.input_from_feature_columns(ids(), COLUMNS, model.embedding_dict)
        embeddings = combined_dnn_input(embeddings, [])
        record(Path(sys.argv[1]) / f"{make.__name__}.pt", parameters, embeddings, model(ids()))
