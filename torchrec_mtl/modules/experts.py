"""Experts and their mixtures: MMoE section 4 (Ma et al., KDD 2018), PLE eq. (1)-(3) and (5) (Tang et al., RecSys 2020).

Letters: ``B`` samples, ``T`` tasks, ``E`` experts, ``G`` gates; ``D`` is the width of an expert's output.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least, check_sizes
from torchrec_mtl.modules.gates import Gate, SoftmaxGate
from torchrec_mtl.modules.initialization import he_normal_
from torchrec_mtl.modules.tracing import unbind


class _Weights(nn.ParameterList):
    """Weights of layers, whose owner for `torch.nn.Module.modules` is this list, so that it has to reset them."""

    def reset_parameters(self) -> None:
        for weight in self:
            he_normal_(weight)


class _Biases(nn.ParameterList):
    """Biases of layers, see `_Weights`."""

    def reset_parameters(self) -> None:
        for bias in self:
            nn.init.zeros_(bias)


class Experts(nn.Module):
    """``E`` MLPs ``f_i`` of the same sizes on the same input, with a ReLU after every layer, including the last.

    Their matrices are stacked, so that one product computes the first layer of all experts. Layer ``l`` of expert ``i``
    is an ``nn.Linear`` with weight ``weights[l][i] [out, in]`` and bias ``biases[l][i] [out]``.

    Args:
        num_experts: number of experts, ``E``.
        in_features: width of the input.
        layer_sizes: layer widths of each expert; the last is ``D``.

    Raises:
        InputError: if there is no expert or no layer.

    Example::

        >>> Experts(num_experts=3, in_features=6, layer_sizes=[8, 4])(torch.randn(2, 6)).shape
        torch.Size([2, 3, 4])
    """

    @checked
    def __init__(self, num_experts: int, in_features: int, layer_sizes: Sequence[int]) -> None:
        super().__init__()
        check_at_least(1, num_experts=num_experts, in_features=in_features)
        check_sizes(1, expert_layer_sizes=layer_sizes)
        self.num_experts = num_experts
        widths = [in_features, *layer_sizes]
        self.weights = _Weights(
            torch.empty(num_experts, size, width) for width, size in zip(widths, layer_sizes, strict=False)
        )
        self.biases = _Biases(torch.empty(num_experts, size) for size in layer_sizes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the initial values of every expert with `he_normal_`."""
        self.weights.reset_parameters()
        self.biases.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, in_features]`` to ``[B, E, D]``."""
        return torch.stack(self.each(x), dim=1)

    def each(self, x: Tensor) -> list[Tensor]:
        """Maps ``[B, in_features]`` to the outputs of the ``E`` experts, each ``[B, D]``."""
        (weight, bias), *others = zip(self.weights, self.biases, strict=True)
        hidden = F.linear(x, weight.flatten(0, 1), bias.flatten()).relu_()
        outputs = unbind(hidden.unflatten(1, bias.shape), self.num_experts)
        for weight, bias in others:  # batched, the products' gradients would be copied to their layout
            of_each = zip(outputs, unbind(weight, self.num_experts, 0), unbind(bias, self.num_experts, 0), strict=True)
            outputs = [F.linear(x, weight, bias).relu_() for x, weight, bias in of_each]
        return outputs


class MixtureOfExperts(nn.Module):
    """``f^g(x) = sum_i w^g(x)_i f_i(x)`` for each of ``G`` gates: MMoE section 4.2; with one gate, section 4.1's MoE.

    Args:
        in_features: width of the input, which the experts and the gates share.
        num_experts, layer_sizes: see `Experts`.
        gate: factory of the gates.
        num_gates: number of gates, ``G``.

    Raises:
        InputError: see `Experts`.

    Example::

        >>> MixtureOfExperts(in_features=6, num_experts=4, layer_sizes=[8, 5], num_gates=3)(torch.randn(2, 6)).shape
        torch.Size([2, 3, 5])
    """

    @checked
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
        check_at_least(1, num_gates=num_gates)
        self.experts = Experts(num_experts, in_features, layer_sizes)
        self.gate = gate(in_features, num_experts, num_gates)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, in_features]`` to ``[B, G, D]``."""
        return torch.bmm(self.gate(x), self.experts(x))


class ExtractionLayer(nn.Module):
    """One extraction layer of PLE: ``g^{k,j} = w^{k,j}(g^{k,j-1}) S^{k,j}``, eq. (5); with one input for all, CGC.

    ``S^{k,j}`` stacks the outputs of the task's experts on ``g^{k,j-1}`` and of the shared experts on ``g^{s,j-1}``, in
    this order. The shared gate reads ``g^{s,j-1}`` and weights all experts: first the experts of task 1 to task ``T``,
    then the shared ones.

    Parameters: ``task_experts[k]``, ``shared_experts``, and ``gates``: one gate per task, then the shared gate.

    Args:
        num_tasks: number of tasks, ``T``.
        in_features: width of each input.
        num_task_experts: number of experts of each task, ``m_k``.
        num_shared_experts: number of shared experts, ``m_s``.
        layer_sizes: see `Experts`.
        gate: factory of the gates.
        shared_gate: whether the layer also returns ``g^{s,j}``; False for the last layer.

    Raises:
        InputError: if a number of experts is too small; see also `Experts`.

    Example::

        >>> layer = ExtractionLayer(2, in_features=6, num_task_experts=1, num_shared_experts=2, layer_sizes=[4])
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
        shared_gate: bool = True,
    ) -> None:
        super().__init__()
        check_at_least(0, num_task_experts=num_task_experts)
        check_at_least(1, num_tasks=num_tasks, num_shared_experts=num_shared_experts)
        self.num_tasks = num_tasks
        self.task_experts: Any = nn.ModuleList(
            Experts(num_task_experts, in_features, layer_sizes) for _ in range(num_tasks if num_task_experts else 0)
        )
        self.shared_experts = Experts(num_shared_experts, in_features, layer_sizes)
        experts_per_gate = [num_task_experts + num_shared_experts] * num_tasks
        experts_per_gate += [num_tasks * num_task_experts + num_shared_experts] * shared_gate
        self.gates = nn.ModuleList(gate(in_features, num_experts) for num_experts in experts_per_gate)

    def forward(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Maps the states of layer ``j-1``, each ``[B, in_features]``, to the states of layer ``j``, each ``[B, D]``.

        The order is ``g^{1,j-1}, ..., g^{T,j-1}, g^{s,j-1}``.
        """
        shared = self.shared_experts.each(states[-1])
        by_task = [experts.each(state) for experts, state in zip(self.task_experts, states, strict=False)]
        weighted = [[*outputs, *shared] for outputs in by_task] or [shared] * self.num_tasks
        if len(self.gates) > self.num_tasks:
            weighted.append([*chain.from_iterable(by_task), *shared])
        return [
            torch.bmm(gate(state), torch.stack(experts, dim=1)).squeeze(1)
            for gate, state, experts in zip(self.gates, states, weighted, strict=False)
        ]
