"""What all libraries share: workloads, initial values, and training like for like.

A library's ``make`` returns a model, ``train(ids [N, fields], labels [N, T])``, which takes a step for each
``batch_size`` rows in order, and ``predict(ids)``, which returns marginal probabilities ``[N, T]``.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LIKE_FOR_LIKE, ADAM, DEFAULT = SETTINGS = ("like for like", "Adam on everything", "library default")
MODELS = ("shared_bottom", "mmoe", "ple", "esmm", "aitm")
LEARNING_RATE = 1e-3  # Adam's default in every library here
TABLE_LEARNING_RATE, TABLE_EPS, TABLE_STD = 0.05, 1e-8, 0.01  # Adagrad

Predict = Callable[[Tensor], Tensor]
Candidate = tuple[nn.Module, Callable[[Tensor, Tensor], object], Predict]


@dataclass(frozen=True)
class Workload:
    """A synthetic funnel, the sizes of models and batches, and how much is measured."""

    base_rates: tuple[float, ...]
    field_sizes: tuple[int, ...]
    num_train: int
    num_test: int
    batch_size: int
    embedding_dim: int
    expert_sizes: list[int]
    tower_sizes: list[int]
    num_experts: int = 4  # in MMoE; each level of PLE has half as many for each task, and as many shared ones
    models: tuple[str, ...] = MODELS
    steps: int = 4  # in a turn of training
    inference: tuple[tuple[int, int], ...] = (
        (1, 200),
        (64, 64),
        (1024, 8),
        (8192, 2),
    )  # batch sizes, batches in a turn
    repeats: int = 7
    seeds: int = 5

    @property
    def fields(self) -> dict[str, int]:
        """Number of ids by field name."""
        return {f"f{i}": size for i, size in enumerate(self.field_sizes)}

    @property
    def tasks(self) -> list[str]:
        return [f"y{t}" for t in range(len(self.base_rates))]

    @property
    def whole_tower_sizes(self) -> list[int]:
        """Layers of ESMM and AITM, whose towers stand directly on the embeddings."""
        return [*self.expert_sizes, *self.tower_sizes]

    def of(self, model: str) -> "Workload":
        """Leaves ESMM two tasks, because the peers' takes no more."""
        return replace(self, base_rates=self.base_rates[:2]) if model == "esmm" else self

    def batches(self, ids: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(ids.split(self.batch_size), labels.split(self.batch_size), strict=True)


FIELDS = tuple(round(10_000 * 10 ** (i / 22)) for i in range(23))
SMALL_FIELDS = (10, 100, 20, 50, 30, 200, 500, 1_000, 5_000, 20_000)
WORKLOADS = {
    "speed": Workload((0.2, 0.05), FIELDS, 65_536, 16_384, 1024, 16, [256, 128], [64]),
    "auc": Workload((0.2, 0.08, 0.03), SMALL_FIELDS, 400_000, 100_000, 512, 8, [128, 64], [32]),
    "quick": Workload(
        (0.4, 0.2), (50, 60, 70, 80, 90, 100), 2048, 2048, 256, 4, [8, 4], [4], 4, ("mmoe",), 2, ((1, 2), (64, 2)), 2, 1
    ),
}


def alike(model: nn.Module, predict: Predict, work: Workload, setting: str, fill: bool) -> Candidate:
    """Trains on the sum over tasks of mean cross entropies, with torch's fused optimizers; see `initialize`."""
    tables, others = initialize(model, fill)
    optimizers = [torch.optim.Adam(others, lr=LEARNING_RATE, fused=True)]
    if setting == ADAM:
        optimizers.append(torch.optim.Adam(tables, lr=LEARNING_RATE, fused=True))
    else:
        optimizers.append(torch.optim.Adagrad(tables, lr=TABLE_LEARNING_RATE, eps=TABLE_EPS, fused=True))

    def train(ids: Tensor, labels: Tensor) -> None:
        model.train()
        for some_ids, some_labels in work.batches(ids, labels):
            loss = F.binary_cross_entropy(predict(some_ids), some_labels) * len(work.tasks)
            model.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()

    return model, train, predict


def initialize(model: nn.Module, fill: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Sets the initial values of a model, see `draw`; returns its tables and its other parameters."""
    tables = [m.weight for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    others = {n: p for n, p in model.named_parameters() if not any(p is weight for weight in tables)}
    draw(tables, others, fill)
    return tables, list(others.values())


@torch.no_grad()
def draw(tables: list[Tensor], others: Mapping[str, Tensor], fill: bool) -> None:
    """Draws small normal tables, matrices ``[..., out, in]`` by He's rule, and zero biases.

    With ``fill``, fills in values instead that do not depend on how a library arranges and names its parameters.
    """
    for position, weight in enumerate(tables, 1):
        ids, columns = (torch.arange(n, dtype=torch.float64) for n in weight.shape)
        waves = 4 * (ids.unsqueeze(1) * position + columns / len(columns)).sin() ** 2
        weight.copy_(waves) if fill else weight.normal_(std=TABLE_STD)
    for name, parameter in others.items():
        width = parameter.shape[-1]
        if "bias" in name:
            parameter.zero_()
        else:
            parameter.fill_(1 / width) if fill else parameter.normal_(std=(2 / width) ** 0.5)
