"""Experts and their mixtures: MMoE section 4 (Ma et al., KDD 2018), PLE eq. (1)-(3) and (5) (Tang et al., RecSys 2020).

``B`` samples, ``T`` tasks, ``E`` experts, ``G`` gates, ``D`` an expert's width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrec_mtl.errors import check_at_least, check_sizes
from torchrec_mtl.modules.gates import Gate, SoftmaxGate
from torchrec_mtl.modules.initialization import he_normal_


class Experts(nn.Module):
    """``E`` MLPs ``f_i`` of the same sizes on the same input, ReLU after every layer, the last one too.

    Their matrices are stacked, so that a layer of all experts is one product. Layer ``l`` of expert ``i`` is the
    ``nn.Linear`` with ``weights[l][i] [out, in]`` and ``biases[l][i] [out]``.

    Args:
        num_experts: ``E``.
        in_features: width of the input.
        layer_sizes: an expert's layers; the last is ``D``.

    Raises:
        InputError: if there is no expert or no layer.

    Example::

        >>> Experts(num_experts=3, in_features=6, layer_sizes=[8, 4])(torch.randn(2, 6)).shape
        torch.Size([2, 3, 4])
    """

    def __init__(self, num_experts: int, in_features: int, layer_sizes: Sequence[int]) -> None:
        super().__init__()
        check_at_least(1, num_experts=num_experts)
        check_sizes(1, expert_layer_sizes=layer_sizes)
        widths = [in_features, *layer_sizes]
        self.weights = nn.ParameterList(
            torch.empty(num_experts, size, width) for width, size in zip(widths, layer_sizes, strict=False)
        )
        self.biases = nn.ParameterList(torch.empty(num_experts, size) for size in layer_sizes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws every expert with `he_normal_`."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            he_normal_(weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_features]`` to ``[B, E, D]``."""
        (weight, bias), *others = zip(self.weights, self.biases, strict=True)
        hidden = F.linear(x, weight.flatten(0, 1), bias.flatten()).relu()
        hidden = hidden.unflatten(1, bias.shape).transpose(0, 1)
        for weight, bias in others:
            hidden = torch.baddbmm(bias.unsqueeze(1), hidden, weight.transpose(1, 2)).relu()
        return hidden.transpose(0, 1)


class MixtureOfExperts(nn.Module):
    """``f^g(x) = sum_i w^g(x)_i f_i(x)`` for each of ``G`` gates: MMoE section 4.2, one gate being section 4.1's MoE.

    Args:
        in_features: width of the input, which experts and gates share.
        num_experts, layer_sizes: see `Experts`.
        gate: makes the gates.
        num_gates: ``G``.

    Raises:
        InputError: see `Experts`.

    Example::

        >>> MixtureOfExperts(in_features=6, num_experts=4, layer_sizes=[8, 5], num_gates=3)(torch.randn(2, 6)).shape
        torch.Size([2, 3, 5])
    """

    def __init__(
        self,
        in_features: int,
        num_experts: int,
        layer_sizes: Sequence[int],
        gate: Gate = SoftmaxGate,
        *,
        num_gates: int,
    ) -> None:
        super().__init__()
        self.experts = Experts(num_experts, in_features, layer_sizes)
        self.gate = gate(in_features, num_experts, num_gates)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_features]`` to ``[B, G, D]``."""
        return torch.bmm(self.gate(x), self.experts(x))


class ExtractionLayer(nn.Module):
    """One extraction layer of PLE: ``g^{k,j} = w^{k,j}(g^{k,j-1}) S^{k,j}``, eq. (5); with the same input for all, CGC.

    ``S^{k,j}`` are the task's own experts on ``g^{k,j-1}``, then the shared ones on ``g^{s,j-1}``. The shared gate
    reads ``g^{s,j-1}`` and weighs all experts: those of task 1, ..., task T, then the shared ones.

    Parameters: ``task_experts[k]``, ``shared_experts``, and ``gates``, one a task and then the shared one.

    Args:
        num_tasks: ``T``.
        in_features: width of each input.
        num_task_experts: ``m_k``, of each task.
        num_shared_experts: ``m_s``.
        layer_sizes: see `Experts`.
        gate: makes the gates.
        shared_gate: the layer also gives ``g^{s,j}``; not for the last.

    Raises:
        InputError: if a number of experts is too small, or see `Experts`.

    Example::

        >>> layer = ExtractionLayer(2, in_features=6, num_task_experts=1, num_shared_experts=2, layer_sizes=[4])
        >>> [tuple(state.shape) for state in layer([torch.randn(5, 6)] * 3)]
        [(5, 4), (5, 4), (5, 4)]
    """

    def __init__(
        self,
        num_tasks: int,
        in_features: int,
        num_task_experts: int,
        num_shared_experts: int,
        layer_sizes: Sequence[int],
        gate: Gate = SoftmaxGate,
        *,
        shared_gate: bool = True,
    ) -> None:
        super().__init__()
        check_at_least(0, num_task_experts=num_task_experts)
        check_at_least(1, num_shared_experts=num_shared_experts)
        self.num_tasks = num_tasks
        self.task_experts = nn.ModuleList(
            Experts(num_task_experts, in_features, layer_sizes) for _ in range(num_tasks if num_task_experts else 0)
        )
        self.shared_experts = Experts(num_shared_experts, in_features, layer_sizes)
        weighed = [num_task_experts + num_shared_experts] * num_tasks
        weighed += [num_tasks * num_task_experts + num_shared_experts] * shared_gate
        self.gates = nn.ModuleList(gate(in_features, num_experts) for num_experts in weighed)

    def forward(self, states: Sequence[Tensor]) -> list[Tensor]:
        """``g^{1,j-1}, ..., g^{T,j-1}, g^{s,j-1}``, each ``[B, in_features]``, to the same of ``j``, ``[B, D]``."""
        shared = self.shared_experts(states[-1])
        own = [experts(state) for experts, state in zip(self.task_experts, states, strict=False)]
        weighed = [torch.cat([of_task, shared], dim=1) for of_task in own] or [shared] * self.num_tasks
        if len(self.gates) > self.num_tasks:
            weighed.append(torch.cat([*own, shared], dim=1))
        return [
            torch.bmm(gate(state), experts).squeeze(1)
            for gate, state, experts in zip(self.gates, states, weighed, strict=False)
        ]
