"""What a peer's program leaves for the test: parameters, inputs and outputs of its models, in float64.

The models are built as the benchmarks build them, by `benchmarks/peers`.

An MLP is a list of ``(weight, bias)``, as `torch.nn.Linear` stores them; a gate or a projection one matrix.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.common import Workload

NUM_IDS, NUM_ROWS = 9, 64
# torch-rechub takes the root of a width in float32: the last, AITM's, has an exact one
SIZES = Workload(
    base_rates=(0.5,) * 3,
    field_sizes=(NUM_IDS,) * 5,
    num_train=NUM_ROWS,
    num_test=NUM_ROWS,
    batch_size=NUM_ROWS,
    embedding_dim=4,
    expert_sizes=[16, 9],
    tower_sizes=[8, 9],
)
Layers = list[tuple[Tensor, Tensor]]


def ids() -> Tensor:
    """Ids, ``[NUM_ROWS, fields]``."""
    return torch.randint(NUM_IDS, (NUM_ROWS, len(SIZES.fields)), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def draw(model: nn.Module) -> nn.Module:
    """``model`` in float64, with parameters so large that all of it moves the outputs."""
    torch.manual_seed(0)
    for parameter in model.double().eval().parameters():
        parameter.normal_(std=0.5)
    return model


def layers(module: nn.Module) -> Layers:
    """Every linear layer inside, in order."""
    return [(m.weight.detach(), m.bias.detach()) for m in module.modules() if isinstance(m, nn.Linear)]


def matrices(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Weights of the linear layers inside, in order."""
    return [m.weight.detach() for module in modules for m in module.modules() if isinstance(m, nn.Linear)]


def record(file: Path, parameters: dict[str, Any], embeddings: Tensor, probabilities: Tensor) -> None:
    """Embeddings ``[NUM_ROWS, fields * D]``, marginal probabilities ``[NUM_ROWS, tasks]``."""
    outputs = {"embeddings": embeddings.detach(), "probabilities": probabilities.detach()}
    torch.save({"parameters": parameters, **outputs}, file)
