"""DeepCTR-Torch's models, recorded: ``python -m tests.peers.deepctr_torch_reference FOLDER``.

Its last layer's bias is in `PredictionLayer`, of which ESMM has one for both tasks.
"""

import sys
from pathlib import Path

from deepctr_torch.inputs import combined_dnn_input

from benchmarks.peers.deepctr_torch_models import build
from tests.peers.recording import SIZES, draw, ids, layers, matrices, record


def shared_bottom(model):
    return {"bottom": layers(model.bottom_dnn), "towers": towers(model)}


def mmoe(model):
    gates = matrices(model.gate_dnn_final_layer)
    return {"experts": all_layers(model.expert_dnn), "gates": gates, "towers": towers(model)}


def ple(model):
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
    return {"layers": extraction, "towers": towers(model)}


def esmm(model):
    outputs = [(model.ctr_dnn, model.ctr_dnn_final_layer), (model.cvr_dnn, model.cvr_dnn_final_layer)]
    return {"towers": [tower(hidden, last, model.out) for hidden, last in outputs]}


def tower(hidden, last, output):
    return [*layers(hidden), (last.weight.detach(), output.bias.detach())]


def towers(model):
    return list(map(tower, model.tower_dnn, model.tower_dnn_final_layer, model.out))


def all_layers(modules):
    return [layers(module) for module in modules]


PARAMETERS = {"shared_bottom": shared_bottom, "mmoe": mmoe, "ple": ple, "esmm": esmm}

if __name__ == "__main__":
    for name in PARAMETERS:
        model = draw(build(name, SIZES.of(name)))
        embeddings, _ = model.input_from_feature_columns(ids(), model.dnn_feature_columns, model.embedding_dict)
        embeddings = combined_dnn_input(embeddings, [])
        record(Path(sys.argv[1]) / f"{name}.pt", PARAMETERS[name](model), embeddings, model(ids()))
