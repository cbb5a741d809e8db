"""OMoE: experts and one gate for all tasks, as MMoE is compared with (Ma et al., KDD 2018, section 4.1).

Symbols: ``f_i`` an expert, ``experts``; ``g`` the gate, ``gate``; ``h^k`` a task's tower.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from torchrec_mtl.models.base import FlatModel
from torchrec_mtl.modules import GateKind, MixtureOfExperts, TaskTowers


class OMoEArch(nn.Module):
    """``y_k = h^k(sum_i g(x)_i f_i(x))``: all towers read the same mixture.

    Choices: those of `MMoEArch`.

    Args:
        in_features: width of the flattened embeddings, ``F * D``.
        num_tasks: ``T``.
        num_experts: ``n``.
        expert_layer_sizes: an expert's layers, ReLU after each.
        tower_layer_sizes: hidden layers of each tower.
        dropout: probability of dropping a tower's hidden unit in training.
        gate: ``"softmax"``, or ``"dselect_k"`` for `torchrec_mtl.modules.DSelectGate`.
        num_selected, per_example, gamma: of DSelect-k.

    Raises:
        InputError: if there is no expert or no layer, or for a gate's argument, see `torchrec_mtl.modules.make_gate`.

    Example::

        >>> import torch
        >>> OMoEArch(in_features=6 * 8, num_tasks=3)(torch.randn(2, 6, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        in_features: int,
        num_tasks: int,
        num_experts: int = 8,
        expert_layer_sizes: Sequence[int] = (256, 128),
        tower_layer_sizes: Sequence[int] = (64,),
        dropout: float = 0.0,
        gate: GateKind = "softmax",
        num_selected: int = 2,
        per_example: bool = True,
        gamma: float = 1.0,
    ) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        self.mixture = MixtureOfExperts(
            in_features, num_experts, expert_layer_sizes, 1, gate, num_selected, per_example, gamma
        )
        self.towers = TaskTowers(num_tasks, expert_layer_sizes[-1], tower_layer_sizes, dropout)

    def forward(self, embeddings: Tensor) -> Tensor:
        """``[B, F, D]`` or ``[B, F * D]`` to logits ``[B, T]``."""
        return self.towers([self.mixture(embeddings.flatten(1)).squeeze(1)] * self.num_tasks)


class OMoE(FlatModel):
    """`OMoEArch` on the embeddings.

    Args: those of `FlatModel`, then `OMoEArch`'s.

    Raises:
        InputError: see `OMoEArch`.
    """

    over_arch_class = OMoEArch
