"""HoME: hierarchy of multi-gate experts (Wang et al., 2024, arXiv 2408.05430).

Symbols: ``z^c``, the meta representation of category ``c``, and ``z^shared`` are what ``meta_mixtures`` returns, the
shared one first; a category's experts and gates read ``z^c || z^shared``, which is ``inputs``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError, check_at_least
from torchrec_mtl.models.base import MultiTaskModel
from torchrec_mtl.modules import (
    FeatureArch,
    NormalizedExperts,
    SelfGatedMixture,
    TaskTowers,
    as_features,
    give_heads,
    initialize_linear_layers,
)
from torchrec_mtl.tasks import TaskForest


def categories_of(tasks: TaskForest, given: Sequence[int] | None) -> list[int]:
    """The category of each task: as given, or by default one for each tree.

    Raises:
        InputError: if there is not one number for each task, or the numbers are not 0, 1, ... without a gap.
    """
    if given is None:
        roots = [([task, *tasks.ancestors(task)])[-1] for task in range(len(tasks))]
        return [sorted(set(roots)).index(root) for root in roots]
    if len(given) != len(tasks) or set(given) != set(range(max(given) + 1)):
        raise InputError(f"`categories` (={list(given)}) must be one number per task, from 0 on without a gap")
    return list(given)


class HoMEArch(nn.Module):
    """Two levels of experts, the first for categories of tasks and the second for tasks, then towers: section 3.

    With ``E^u(v)`` the experts of unit ``u`` (`NormalizedExperts`) and ``Mix`` a gate over them and a self-gate over
    the unit's own (`SelfGatedMixture`)::

        z^c      = Mix^c(v, {E^shared, E^c})                     for each category c
        z^shared = Mix^shared(v, {E^shared, E^1, ..., E^C})
        state_t  = Mix^t(z^c || z^shared, {E^shared, E^c, E^t})   for each task t of category c, with experts of level 2
        y_t      = tower_t(state_t)

    So an expert is shared by all tasks, by a category or by none, and a sparse task has the experts of its category.

    Written from notes on the paper and others' code, not from the paper's text, so sections are named and no equations.
    What differs and what was chosen: the paper normalises experts over the batch, which makes a row depend on others;
    here each expert's output is normalised by itself. Experts are one layer. A unit's experts share one feature gate.
    The paper's two categories, passive watching and interactions, are what its tasks are; here they are an argument,
    and by default each funnel of the forest is one. With one category, ``E^1`` and ``E^shared`` are the same kind of
    experts. All experts have one width.

    Args:
        in_features: width of the flattened embeddings, ``F * D``.
        tasks: the ``T`` tasks.
        categories, num_shared_experts, num_category_experts, num_task_experts: see `HoME`.
        layer_size, feature_gate_ranks, tower_layer_sizes, dropout: see `HoME`.

    Raises:
        InputError: see `HoME`.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> HoMEArch(6 * 8, TaskChain(["click", "cart", "purchase"]))(torch.randn(2, 6, 8)).shape
        torch.Size([2, 3])
    """

    @checked
    def __init__(
        self,
        in_features: int,
        tasks: TaskForest,
        *,
        categories: Sequence[int] | None = None,
        num_shared_experts: int = 2,
        num_category_experts: int = 2,
        num_task_experts: int = 1,
        layer_size: int = 128,
        feature_gate_ranks: Sequence[int] = (16, 16),
        tower_layer_sizes: Sequence[int] = (64,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_at_least(1, in_features=in_features, layer_size=layer_size, num_shared_experts=num_shared_experts)
        check_at_least(1, num_category_experts=num_category_experts, num_task_experts=num_task_experts)
        self.categories = categories_of(tasks, categories)
        self.num_categories = max(self.categories) + 1

        def unit(width: int, num_experts: int) -> NormalizedExperts:
            return NormalizedExperts(width, num_experts, layer_size, feature_gate_ranks)

        of_level = [num_shared_experts, *[num_category_experts] * self.num_categories]
        seen = [sum(of_level), *[num_shared_experts + num_category_experts] * self.num_categories]
        self.meta_experts: Any = nn.ModuleList(unit(in_features, number) for number in of_level)
        self.meta_mixtures: Any = nn.ModuleList(
            SelfGatedMixture(in_features, number, own) for number, own in zip(seen, of_level, strict=True)
        )
        width = 2 * layer_size
        self.experts: Any = nn.ModuleList(unit(width, number) for number in of_level)
        self.task_experts: Any = nn.ModuleList(unit(width, num_task_experts) for _ in tasks)
        self.task_mixtures: Any = nn.ModuleList(
            SelfGatedMixture(width, seen[-1] + num_task_experts, num_task_experts) for _ in tasks
        )
        self.towers = TaskTowers(len(tasks), layer_size, tower_layer_sizes, dropout)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Maps ``[B, F, D]`` or ``[B, F * D]`` to logits ``[B, T]``."""
        v = embeddings.flatten(1)
        meta = [experts(v) for experts in self.meta_experts]
        shared = self.meta_mixtures[0](v, torch.cat(meta, dim=1), meta[0])
        states: dict[int, Tensor] = {}
        for category in range(self.num_categories):
            own = meta[category + 1]
            of_category = self.meta_mixtures[category + 1](v, torch.cat([meta[0], own], dim=1), own)
            inputs = torch.cat([of_category, shared], dim=1)
            seen = [self.experts[0](inputs), self.experts[category + 1](inputs)]
            for task in [task for task, number in enumerate(self.categories) if number == category]:
                own = self.task_experts[task](inputs)
                states[task] = self.task_mixtures[task](inputs, torch.cat([*seen, own], dim=1), own)
        return self.towers([states[task] for task in range(len(states))])

    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """See `MultiTaskModel`."""
        self.towers.start_from_base_rates(base_rates)


class HoME(MultiTaskModel):
    """`HoMEArch` on top of the features.

    Args:
        features: a `FeatureArch`, or a bare embedding bag collection where there are no dense features.
        tasks: the ``T`` tasks.
        categories: number of each task's category, from 0 on; by default each tree of tasks is a category.
        num_shared_experts: number of experts of all tasks, in each level.
        num_category_experts: number of experts of each category, in each level.
        num_task_experts: number of experts of each task, in the second level.
        layer_size: width of every expert.
        feature_gate_ranks: ranks of the low-rank matrices of each feature gate; the paper has ``L`` matrices, of an
            ``L``-th of the width of its input.
        tower_layer_sizes: hidden layer widths of each tower.
        dropout: probability of dropping a hidden unit of a tower during training.

    Raises:
        InputError: if a number is below 1, there is no rank, the categories are not one number per task from 0 on
            without a gap, or ``dropout`` is not between 0 and 1.
    """

    @checked
    def __init__(
        self,
        features: FeatureArch | nn.Module,
        tasks: TaskForest,
        *,
        categories: Sequence[int] | None = None,
        num_shared_experts: int = 2,
        num_category_experts: int = 2,
        num_task_experts: int = 1,
        layer_size: int = 128,
        feature_gate_ranks: Sequence[int] = (16, 16),
        tower_layer_sizes: Sequence[int] = (64,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.features = as_features(features)
        with torch.device(self.features.dense_device):
            self.over_arch = HoMEArch(
                self.features.out_features,
                tasks,
                categories=categories,
                num_shared_experts=num_shared_experts,
                num_category_experts=num_category_experts,
                num_task_experts=num_task_experts,
                layer_size=layer_size,
                feature_gate_ranks=feature_gate_ranks,
                tower_layer_sizes=tower_layer_sizes,
                dropout=dropout,
            )
        initialize_linear_layers(self.over_arch)
        give_heads(self.over_arch, tasks)
