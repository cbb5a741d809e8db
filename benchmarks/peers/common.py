"""What the libraries' programs share, with torch and numpy alone: sizes, initial values, a plain training loop."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LIKE_FOR_LIKE, ADAM, DEFAULT = SETTINGS = ("like for like", "Adam on everything", "library default")
LEARNING_RATE = 1e-3  # Adam's default and that of every library here
TABLE_LEARNING_RATE, TABLE_EPS = 0.05, 1e-8  # of Adagrad
TABLE_STD = 0.01


@dataclass(frozen=True)
class Sizes:
    """Of models and batches, the same for all libraries."""

    field_sizes: tuple[int, ...]
    num_tasks: int
    batch_size: int
    embedding_dim: int
    num_experts: int  # in all in MMoE; half of it of each kind in PLE, which has two levels
    expert_sizes: tuple[int, ...]
    tower_sizes: tuple[int, ...]

    @property
    def fields(self) -> dict[str, int]:
        """Name -> number of ids."""
        return {f"f{i}": int(size) for i, size in enumerate(self.field_sizes)}

    @property
    def tasks(self) -> list[str]:
        return [f"y{t}" for t in range(self.num_tasks)]

    @property
    def whole_tower_sizes(self) -> tuple[int, ...]:
        """Of models whose towers stand on the embeddings: ESMM and AITM."""
        return (*self.expert_sizes, *self.tower_sizes)


Start = Callable[[nn.Module], None]  # gives a module its initial values


@dataclass(frozen=True)
class Candidate:
    """A model with what trains it and what predicts with it.

    ``train(ids [N, fields], labels [N, T])`` takes the rows in order, ``batch_size`` a step; ``predict(ids)`` gives
    marginal probabilities ``[N, T]``.
    """

    module: nn.Module
    train: Callable[[Tensor, Tensor], object]
    predict: Callable[[Tensor], Tensor]


def batches(ids: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(ids.split(size), labels.split(size), strict=True)


def alike(
    module: nn.Module, predict: Callable[[Tensor], Tensor], sizes: Sizes, setting: str, start: Start
) -> Candidate:
    """The sum over tasks of mean cross entropies; optimizers in torch's fastest implementation."""
    start(module)
    tables, others = tables_and_others(module)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Adam(others.values(), lr=LEARNING_RATE, fused=True),
        torch.optim.Adagrad(tables, lr=TABLE_LEARNING_RATE, eps=TABLE_EPS, fused=True)
        if setting == LIKE_FOR_LIKE
        else torch.optim.Adam(tables, lr=LEARNING_RATE, fused=True),
    ]

    def train(ids: Tensor, labels: Tensor) -> None:
        module.train()
        for some_ids, some_labels in batches(ids, labels, sizes.batch_size):
            loss = F.binary_cross_entropy(predict(some_ids), some_labels) * sizes.num_tasks
            module.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()

    return Candidate(module, train, predict)


def tables_and_others(module: nn.Module) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Tables in their order, and all other parameters by name."""
    kinds = (nn.Embedding, nn.EmbeddingBag)
    tables = [m.weight for m in module.modules() if isinstance(m, kinds)]
    others = {n: p for n, p in module.named_parameters() if not any(p is weight for weight in tables)}
    return tables, others


def _fill(module: nn.Module, table: Callable[[int, Tensor], Any], matrix: Callable[[Tensor], Any]) -> None:
    """Tables by their order, then the matrices, ``[..., out, in]``; biases are 0."""
    tables, others = tables_and_others(module)
    with torch.no_grad():
        for number, weight in enumerate(tables):
            table(number, weight)
        for name, parameter in others.items():
            parameter.zero_() if "bias" in name else matrix(parameter)


def draw_alike(module: nn.Module) -> None:
    """Small normal tables, matrices by He's rule."""
    _fill(
        module,
        lambda _, weight: weight.normal_(std=TABLE_STD),
        lambda weight: weight.normal_(std=(2 / weight.shape[-1]) ** 0.5),
    )


def fill_alike(module: nn.Module) -> None:
    """Values for which it does not matter how a library arranges and names its parameters."""

    def table(number: int, weight: Tensor) -> None:
        ids, columns = (torch.arange(n, dtype=torch.float64) for n in weight.shape)
        weight.copy_(4 * (ids.unsqueeze(1) * (number + 1) + columns / len(columns)).sin() ** 2)

    _fill(module, table, lambda weight: weight.fill_(1 / weight.shape[-1]))
