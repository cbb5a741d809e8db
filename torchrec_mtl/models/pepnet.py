"""PEPNet: parameter and embedding personalized network (Chang et al., KDD 2023, arXiv 2302.01115).

Symbols: ``E``, the embeddings of all fields, is ``embeddings``; ``O_ep``, what EPNet makes of them, is ``personal``;
``H^(l)`` is a layer of a task's tower, and ``delta`` a `GateUnit`. ``stop(.)`` passes no gradient on.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least, check_sizes
from torchrec_mtl.models.base import MultiTaskModel
from torchrec_mtl.modules import (
    EmbeddingGate,
    FeatureArch,
    GateUnit,
    TaskTowers,
    as_features,
    give_heads,
    hidden_layers,
    initialize_linear_layers,
)
from torchrec_mtl.modules.gate_unit import check_positions
from torchrec_mtl.tasks import TaskForest


class PEPNetArch(nn.Module):
    """EPNet scales the embeddings, and PPNet scales each layer of every task's tower.

    EPNet has one gate for all tasks, on the fields ``F_d`` that tell domains apart::

        O_ep = delta_domain * E,  delta_domain = U_ep([E(F_d); stop(E)])

    PPNet has a gate for each layer of each task, on the fields ``F_p`` of user, item and author::

        H^(l+1) = relu(W^(l) O^(l) + b^(l)),  O^(l) = delta_task^(l) * H^(l),  O^(0) = O_ep,
        delta_task^(l) = U_pp([E(F_p); stop(O_ep)])

    The logit is linear in the last ``O^(l)``. The paper does not say what ``H^(1)`` is, nor how wide a gate is. As in
    TorchEasyRec, ``H^(1)`` is the first hidden layer, its gate is as wide as the layer, and EPNet's gate as the
    embeddings. Tasks share their towers' input, and domains share the towers.

    Args:
        field_dims: dimension ``D_f`` of each field; ``in_features`` of other models is their sum.
        num_tasks: number of tasks, ``T``.
        domain_fields, prior_fields: positions of fields, otherwise as in `PEPNet`.
        tower_layer_sizes, dropout: see `PEPNet`.

    Raises:
        InputError: if a position is not that of a field; see also `PEPNet`.

    Example::

        >>> PEPNetArch(field_dims=[8] * 6, num_tasks=3, domain_fields=[5])(torch.randn(2, 6, 8)).shape
        torch.Size([2, 3])
    """

    @checked
    def __init__(
        self,
        field_dims: Sequence[int],
        num_tasks: int,
        *,
        domain_fields: Sequence[int] | None = None,
        prior_fields: Sequence[int] | None = None,
        tower_layer_sizes: Sequence[int] = (256, 128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_at_least(1, num_tasks=num_tasks)
        check_sizes(1, field_dims=field_dims, tower_layer_sizes=tower_layer_sizes)
        self.field_dims, width = list(field_dims), sum(field_dims)
        every = range(len(field_dims))
        domain = list(every if domain_fields is None else domain_fields)
        self.prior_fields = list(every if prior_fields is None else prior_fields)
        check_positions(len(field_dims), prior_fields=self.prior_fields)
        self.embedding_gate: nn.Module = EmbeddingGate(field_dims, domain) if domain else nn.Identity()
        of_prior = sum(self.field_dims[field] for field in self.prior_fields) + width
        layers = list(zip([width, *tower_layer_sizes], tower_layer_sizes, strict=False))
        self.layers: Any = nn.ModuleList(
            nn.ModuleList(hidden_layers(size_before, [size], dropout) for size_before, size in layers)
            for _ in range(num_tasks)
        )
        self.layer_gates: Any = nn.ModuleList(
            nn.ModuleList(GateUnit(of_prior, size, size) for size in tower_layer_sizes)
            for _ in range(num_tasks if self.prior_fields else 0)
        )
        self.towers = TaskTowers(num_tasks, tower_layer_sizes[-1], layer_sizes=())

    def forward(self, embeddings: Tensor) -> Tensor:
        """Maps ``[B, F, D]`` or ``[B, sum(D_f)]`` to logits ``[B, T]``."""
        embeddings = embeddings.flatten(1)
        personal = self.embedding_gate(embeddings)
        states = [personal] * len(self.layers)
        if self.prior_fields:
            fields = embeddings.split(self.field_dims, dim=1)
            prior = torch.cat([*(fields[field] for field in self.prior_fields), personal.detach()], dim=1)
        for task, layers in enumerate(self.layers):
            for place, layer in enumerate(layers):
                states[task] = layer(states[task])
                if self.prior_fields:
                    states[task] = states[task] * self.layer_gates[task][place](prior)
        return self.towers(states)

    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """See `MultiTaskModel`."""
        self.towers.start_from_base_rates(base_rates)


class PEPNet(MultiTaskModel):
    """`PEPNetArch` on top of the features.

    Args:
        features: a `FeatureArch`, or a bare embedding bag collection where there are no dense features.
        tasks: the ``T`` tasks.
        domain_fields: names of the sparse fields that tell domains apart, for EPNet: the scene, the page, the app. By
            default all fields; empty for no EPNet.
        prior_fields: names of the sparse fields that say who and what it is about, for PPNet: in the paper ids and
            profile of user, item and author. By default all fields; empty for no PPNet.
        tower_layer_sizes: hidden layer widths of each task's tower, which PPNet scales.
        dropout: probability of dropping a hidden unit of a tower during training.

    Raises:
        InputError: if a name is not among the ``embedding_names`` of the features or occurs twice, a tower has no
            layer, a layer width is below 1, or ``dropout`` is not between 0 and 1.
    """

    @checked
    def __init__(
        self,
        features: FeatureArch | nn.Module,
        tasks: TaskForest,
        *,
        domain_fields: Sequence[str] | None = None,
        prior_fields: Sequence[str] | None = None,
        tower_layer_sizes: Sequence[int] = (256, 128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.features = as_features(features)
        domain = None if domain_fields is None else self.features.positions(domain_fields=domain_fields)
        prior = None if prior_fields is None else self.features.positions(prior_fields=prior_fields)
        with torch.device(self.features.dense_device):
            self.over_arch = PEPNetArch(
                self.features.field_dims,
                len(tasks),
                domain_fields=domain,
                prior_fields=prior,
                tower_layer_sizes=tower_layer_sizes,
                dropout=dropout,
            )
        initialize_linear_layers(self.over_arch)
        give_heads(self.over_arch, tasks)
