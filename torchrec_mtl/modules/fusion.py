"""The fusion levels of AdaTT (Li et al., KDD 2023, section 3), where every task sees the experts of every other."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least
from torchrec_mtl.modules.experts import Experts
from torchrec_mtl.modules.gates import Gate, SoftmaxGate
from torchrec_mtl.modules.tracing import unbind


class FusionLayer(nn.Module):
    """One fusion level, ``f_t^l = (pad(v_t^l) + G_t^l)^T E^l``: AdaTT eq. (4)-(11).

    ``E^l`` stacks the outputs of all experts: those of task 1 on ``f_1^{l-1}``, to those of task ``T`` on
    ``f_T^{l-1}``, then the shared ones on the shared state. ``G_t^l`` is a gate on ``f_t^{l-1}`` over all of them, and
    ``v_t^l`` weighs the task's native experts alone, whatever the input. If every unit has one expert, its native
    expert is added as it is, as below eq. (9): ``v`` is 1 and not learnt.

    Parameters: ``experts[u]`` and ``gates[u]``, one for each unit ``u``: the tasks, then the shared one; ``native`` has
    the ``v`` of all units that fuse, one after another.

    Args:
        num_tasks: number of tasks, ``T``.
        in_features: width of each input.
        num_task_experts: number of experts of each task, ``m_t``.
        num_shared_experts: number of shared experts; with 0 there is no shared unit, which is AdaTT-sp.
        layer_sizes: see `Experts`.
        gate: factory of the gates.
        native_experts: whether ``v`` is there; the paper's ablation in section 4.4 leaves it out.
        shared_fusion: whether the shared unit, if there is one, fuses too; False for the last level, section 3.2.

    Raises:
        InputError: if a number of experts is too small; see also `Experts`.

    Example::

        >>> layer = FusionLayer(2, in_features=6, num_task_experts=2, num_shared_experts=1, layer_sizes=[4])
        >>> [tuple(state.shape) for state in layer([torch.randn(5, 6)] * 3)]
        [(5, 4), (5, 4), (5, 4)]
    """

    @checked
    def __init__(
        self,
        num_tasks: int,
        in_features: int,
        num_task_experts: int,
        num_shared_experts: int,
        layer_sizes: Sequence[int],
        gate: Gate = SoftmaxGate,
        *,
        native_experts: bool = True,
        shared_fusion: bool = True,
    ) -> None:
        super().__init__()
        check_at_least(1, num_tasks=num_tasks, num_task_experts=num_task_experts)
        check_at_least(0, num_shared_experts=num_shared_experts)
        self.num_experts = [num_task_experts] * num_tasks + [num_shared_experts] * (num_shared_experts > 0)
        self.num_fused = num_tasks + (num_shared_experts > 0 and shared_fusion)
        total = sum(self.num_experts)
        self.experts: Any = nn.ModuleList(Experts(number, in_features, layer_sizes) for number in self.num_experts)
        self.gates = nn.ModuleList(gate(in_features, total) for _ in range(self.num_fused))
        learnt = native_experts and max(self.num_experts) > 1
        self.native = nn.Parameter(torch.empty(sum(self.num_experts[: self.num_fused]))) if learnt else None
        self.adds_native = native_experts and not learnt
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws each ``v`` from ``-m^-0.5`` to ``m^-0.5``, as in the authors' code."""
        if self.native is not None:
            for weights in self.native.split(self.num_experts[: self.num_fused]):
                nn.init.uniform_(weights, -(len(weights) ** -0.5), len(weights) ** -0.5)

    def forward(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Maps the states of level ``l-1``, each ``[B, in_features]``, to the states of level ``l``, each ``[B, D]``.

        The order is that of the units. Without its fusion, the shared unit has a state to read and returns none.
        """
        outputs = [of_unit.each(state) for of_unit, state in zip(self.experts, states, strict=True)]
        weights = torch.cat([gate(state) for gate, state in zip(self.gates, states, strict=False)], dim=1)
        if self.native is not None:
            weights = weights + self._padded(self.native)
        stacked = torch.stack([*chain.from_iterable(outputs)], dim=1)
        fused = unbind(torch.bmm(weights, stacked), self.num_fused)  # AdaTT eq. (11)
        return [f + native[0] for f, native in zip(fused, outputs, strict=False)] if self.adds_native else fused

    def _padded(self, native: Tensor) -> Tensor:
        """``pad(v)`` of the units that fuse, ``[U, E]``."""
        sizes = self.num_experts[: self.num_fused]
        parts = native.split(sizes)
        rows, before = [], 0
        for unit, size in enumerate(sizes):
            rows.append(F.pad(parts[unit], (before, sum(self.num_experts) - before - size)))
            before += size
        return torch.stack(rows)
