"""torch-rechub's models, recorded: ``python -m tests.peers.torch_rechub_reference FOLDER``.

Unlike the papers' and ours, its MLPs normalise every layer by its batch and its gates have biases, which is taken out
here; each step of AITM has a transfer of its own, which here holds the first one's weights.
"""

import sys
from pathlib import Path

from benchmarks.peers.torch_rechub_models import as_in_the_papers, build
from tests.peers.recording import SIZES, draw, ids, layers, matrices, record


def shared_bottom(model):
    return {"bottom": layers(model.bottom_mlp), "towers": all_layers(model.towers)}


def mmoe(model):
    parameters = {"experts": all_layers(model.experts), "gates": matrices(model.gates)}
    return {**parameters, "towers": all_layers(model.towers)}


def ple(model):
    half = SIZES.num_experts // 2
    extraction = []
    for cgc in model.cgc_layers:
        own = all_layers(cgc.experts_specific)
        extraction.append(
            {
                "task_experts": [own[t * half : (t + 1) * half] for t in range(len(SIZES.tasks))],
                "shared_experts": all_layers(cgc.experts_shared),
                "gates": matrices([*cgc.gates_specific, *([cgc.gate_shared] if hasattr(cgc, "gate_shared") else [])]),
            }
        )
    return {"layers": extraction, "towers": all_layers(model.towers)}


def esmm(model):
    return {"towers": all_layers([model.tower_ctr, model.tower_cvr])}


def aitm(model):
    for step in model.aits[1:]:
        step.load_state_dict(model.aits[0].state_dict())
    transfer = {name: getattr(step, f"{name[0]}_layer").weight.detach() for name in ("query", "key", "value")}
    parameters = {"representations": all_layers(model.bottoms), "information": all_layers(model.info_gates)}
    return {**parameters, "transfer": transfer, "towers": all_layers(model.towers)}


def all_layers(modules):
    return [layers(module) for module in modules]


PARAMETERS = {"shared_bottom": shared_bottom, "mmoe": mmoe, "ple": ple, "esmm": esmm, "aitm": aitm}

if __name__ == "__main__":
    rows = dict(zip(SIZES.fields, ids().T, strict=True))
    for name in PARAMETERS:
        model = draw(as_in_the_papers(build(name, SIZES.of(name))))
        parameters = PARAMETERS[name](model)
        probabilities = model(rows)
        if name == "esmm":  # it gives P(purchase | click) first
            probabilities = probabilities[:, 1:]
        embeddings = model.embedding(rows, model.embedding.features, squeeze_dim=True)
        record(Path(sys.argv[1]) / f"{name}.pt", parameters, embeddings, probabilities)
