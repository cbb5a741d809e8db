"""Gates over experts: softmax (Ma et al., KDD 2018) and DSelect-k (Hazimeh et al., NeurIPS 2021).

Letters: ``B`` samples, ``G`` gates on one input, ``E`` experts, ``k`` selectors per gate, ``m`` bits per expert.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrec_mtl.argument_types import check_fields, checked
from torchrec_mtl.errors import InputError, check_at_least
from torchrec_mtl.modules.dynamic_selector import check_gamma, smooth_step
from torchrec_mtl.modules.tracing import unbind


class Gate(Protocol):
    """A factory of gates on one input: makes a module that maps ``[B, in_features]`` to weights ``[B, G, E]``.

    `SoftmaxGate` is one such factory, and a `DSelectK` is another. Models take the factory as an argument, so adding a
    gate takes one class.
    """

    def __call__(self, in_features: int, num_experts: int, num_gates: int = 1) -> nn.Module: ...


class SoftmaxGate(nn.Module):
    """``g(x) = softmax(W_g x)``, MMoE section 4.2: every expert has some weight. There is no bias, as in the paper.

    Parameters: ``linear.weight [G * E, in_features]``; the rows of gate ``g`` start at ``g * E``.

    Args:
        in_features: width of the input.
        num_experts: number of experts, ``E``.
        num_gates: number of gates, ``G``.

    Raises:
        InputError: if a number is below 1.

    Example::

        >>> weights = SoftmaxGate(in_features=6, num_experts=4, num_gates=3)(torch.randn(2, 6))
        >>> weights.shape, bool(weights.sum(2).allclose(torch.ones(2, 3)))
        (torch.Size([2, 3, 4]), True)
    """

    @checked
    def __init__(self, in_features: int, num_experts: int, num_gates: int = 1) -> None:
        super().__init__()
        check_at_least(1, in_features=in_features, num_experts=num_experts, num_gates=num_gates)
        self.num_experts = num_experts
        self.linear = nn.Linear(in_features, num_gates * num_experts, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, in_features]`` to weights ``[B, G, E]`` that sum to 1 over the experts."""
        return self.linear(x).unflatten(1, (-1, self.num_experts)).softmax(2)


class DSelectGate(nn.Module):
    """DSelect-k: ``q(x) = sum_i softmax(alpha)_i r(z^i)``; at most ``k`` experts once the selectors are binary.

    A selector ``r(z) [E]`` gives expert ``e`` a product over the ``m = ceil(log2 E)`` binary digits of ``e``:
    ``S(z_j)`` where digit ``j`` is 1, and ``1 - S(z_j)`` where it is 0. ``S`` is the smooth step, exactly 0 below
    ``-gamma / 2`` and exactly 1 above ``gamma / 2``. In the code, ``z`` is ``codes`` and ``alpha`` is ``mixture``.

    Choices that the paper leaves open, and differences from it:

    * If ``E`` is not a power of two, ``2^m - E`` codes belong to no expert. The authors add a penalty to the objective
      that keeps selectors away from these codes. Here such a code ``c`` stands for expert ``c - E``, so that weights
      always sum to 1.
    * The objectives here have no entropy regulariser, which is off by default in the authors' layer too. Without it, a
      selector becomes binary only where the loss drives it there.
    * Per example, ``z`` and ``alpha`` are linear in ``x`` without bias; the authors' layer has biases.
    * The initial values are the authors': ``z`` within ``gamma / 100`` of 0, where all codes weigh about the same.

    Parameters: ``codes [G * k * m, in_features]`` (the least significant digit first) and
    ``mixture [G * k, in_features]``; if not per example, without the dimension ``in_features``.

    Args:
        in_features: width of the input.
        num_experts: number of experts, ``E``.
        num_gates: number of gates, ``G``.
        num_selected: number of selectors, ``k``.
        per_example: whether ``z`` and ``alpha`` depend on the input; if not, they are plain parameters ("static").
        gamma: width of the smooth step.

    Raises:
        InputError: if a number is below 1, ``num_selected`` is above ``num_experts``, or ``gamma`` is not finite and
            positive.

    Example::

        >>> gate = DSelectGate(in_features=6, num_experts=4, num_selected=1, per_example=False)
        >>> _ = nn.init.constant_(gate.codes, 1.0)  # both digits are 1: expert 3
        >>> gate(torch.randn(1, 6))
        tensor([[[0., 0., 0., 1.]]], grad_fn=<ExpandBackward0>)
    """

    @checked
    def __init__(
        self,
        in_features: int,
        num_experts: int,
        num_gates: int = 1,
        num_selected: int = 2,
        per_example: bool = True,
        gamma: float = 1.0,
    ) -> None:
        super().__init__()
        check_at_least(1, in_features=in_features, num_experts=num_experts, num_gates=num_gates)
        if not 1 <= num_selected <= num_experts:
            raise InputError(
                f"`num_selected` (={num_selected}) must be from 1 to the number of experts of a gate (={num_experts})"
            )
        check_gamma(gamma)
        self.num_experts, self.per_example, self.gamma = num_experts, per_example, gamma
        self.num_digits = (num_experts - 1).bit_length()
        self.shape = (num_gates, num_selected)
        inputs = (in_features,) if per_example else ()
        num_selectors = num_gates * num_selected
        self.codes = nn.Parameter(torch.empty(num_selectors * self.num_digits, *inputs))
        self.mixture = nn.Parameter(torch.empty(num_selectors, *inputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the initial values that the authors use."""
        nn.init.uniform_(self.codes, -self.gamma / 100, self.gamma / 100)
        nn.init.uniform_(self.mixture, -0.05, 0.05)

    def select(self, codes: Tensor) -> Tensor:
        """Maps codes ``z [..., m]`` to the weights of the selectors, ``r(z) [..., E]``."""
        weights = codes.new_ones(1)  # broadcast
        for digit in unbind(smooth_step(codes, self.gamma).unsqueeze(-1), self.num_digits, dim=-2):
            weights = torch.cat([weights * (1 - digit), weights * digit], dim=-1)
        num_spare = 2**self.num_digits - self.num_experts
        experts, spare = weights.split([self.num_experts, num_spare], dim=-1)
        return experts + F.pad(spare, (0, self.num_experts - num_spare))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, in_features]`` to weights ``[B, G, E]`` that sum to 1 over the experts."""
        codes, mixture = (
            F.linear(x, parameter) if self.per_example else parameter.unsqueeze(0)
            for parameter in (self.codes, self.mixture)
        )
        selectors = self.select(codes.unflatten(1, (*self.shape, self.num_digits)))
        mixture = mixture.unflatten(1, self.shape).softmax(2)
        weights = (mixture.unsqueeze(-1) * selectors).sum(2)
        return weights.expand(x.shape[0], -1, -1)


@dataclass(frozen=True)
class DSelectK:
    """A factory of `DSelectGate` modules, for the argument ``gate`` of a model.

    Args:
        num_selected: number of experts that a gate selects, ``k``.
        per_example: whether the choice of experts depends on the input; if not, it is fixed ("static").
        gamma: width of the smooth step.

    Raises:
        InputError: if ``num_selected`` is below 1 or ``gamma`` is not finite and positive.

    Example::

        >>> DSelectK(num_selected=1)(in_features=6, num_experts=4)(torch.randn(2, 6)).shape
        torch.Size([2, 1, 4])
    """

    num_selected: int = 2
    per_example: bool = True
    gamma: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(1, num_selected=self.num_selected)
        check_gamma(self.gamma)

    def __call__(self, in_features: int, num_experts: int, num_gates: int = 1) -> nn.Module:
        """See `Gate`."""
        return DSelectGate(in_features, num_experts, num_gates, self.num_selected, self.per_example, self.gamma)
