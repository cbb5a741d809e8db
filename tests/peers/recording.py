"""What a peer's program leaves for the test: parameters, inputs and outputs of its models, in float64.

An MLP is a list of ``(weight, bias)``, as `torch.nn.Linear` stores them; a gate or a projection one matrix.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FIELDS = [f"f{i}" for i in range(5)]
NUM_IDS, EMBEDDING_DIM, NUM_TASKS, NUM_ROWS = 9, 4, 3, 64
EXPERT_SIZES, TOWER_SIZES = (16, 9), (6, 5)  # torch-rechub takes the root of a width in float32: 9 has an exact one
NUM_EXPERTS = 2  # of each kind in PLE, in all in MMoE
Layers = list[tuple[Tensor, Tensor]]


def ids() -> Tensor:
    """Ids, ``[NUM_ROWS, fields]``."""
    return torch.randint(NUM_IDS, (NUM_ROWS, len(FIELDS)), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def draw(model: nn.Module) -> nn.Module:
    """``model`` in float64, with parameters so large that all of it moves the outputs."""
    torch.manual_seed(0)
    for parameter in model.double().eval().parameters():
        parameter.normal_(std=0.6)
    return model


def layers(module: nn.Module) -> Layers:
    """Every linear layer inside, in order."""
    return [(m.weight.detach(), m.bias.detach()) for m in module.modules() if isinstance(m, nn.Linear)]


def record(file: Path, parameters: dict[str, Any], embeddings: Tensor, probabilities: Tensor) -> None:
    """Embeddings ``[NUM_ROWS, fields * EMBEDDING_DIM]``, marginal probabilities ``[NUM_ROWS, tasks]``."""
    outputs = {"embeddings": embeddings.detach(), "probabilities": probabilities.detach()}
    torch.save({"parameters": parameters, **outputs}, file)
