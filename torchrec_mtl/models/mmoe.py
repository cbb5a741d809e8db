"""MMoE: experts for all tasks, a gate for each (Ma et al., KDD 2018, section 4.2).

Symbols: ``f_i`` an expert, ``experts``; ``g^k`` a task's gate, ``gate``; ``h^k`` its tower.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from torchrec_mtl.models.base import FlatModel
from torchrec_mtl.modules import GateKind, MixtureOfExperts, TaskTowers


class MMoEArch(nn.Module):
    """``y_k = h^k(f^k(x))``, ``f^k(x) = sum_i g^k(x)_i f_i(x)``, ``g^k(x) = softmax(W_gk x)``.

    Choices: the paper's experts are MLPs with ReLU, here after the last layer too, which could be linear; gates are
    linear without bias, as the equation has them, and read the embeddings ``x`` as the experts do.

    Args:
        in_features: width of the flattened embeddings, ``F * D``.
        num_tasks: ``T``.
        num_experts: ``n``; 8 in the paper.
        expert_layer_sizes: an expert's layers, ReLU after each.
        tower_layer_sizes: hidden layers of each tower.
        dropout: probability of dropping a tower's hidden unit in training.
        gate: ``"softmax"``, or ``"dselect_k"`` for `torchrec_mtl.modules.DSelectGate`.
        num_selected, per_example, gamma: of DSelect-k.

    Raises:
        InputError: if there is no expert or no layer, or for a gate's argument, see `torchrec_mtl.modules.make_gate`.

    Example::

        >>> import torch
        >>> MMoEArch(in_features=6 * 8, num_tasks=3)(torch.randn(2, 6, 8)).shape
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
        self.mixture = MixtureOfExperts(
            in_features, num_experts, expert_layer_sizes, num_tasks, gate, num_selected, per_example, gamma
        )
        self.towers = TaskTowers(num_tasks, expert_layer_sizes[-1], tower_layer_sizes, dropout)

    def forward(self, embeddings: Tensor) -> Tensor:
        """``[B, F, D]`` or ``[B, F * D]`` to logits ``[B, T]``."""
        return self.towers(self.mixture(embeddings.flatten(1)).unbind(1))


class MMoE(FlatModel):
    """`MMoEArch` on the embeddings.

    Args: those of `FlatModel`, then `MMoEArch`'s.

    Raises:
        InputError: see `MMoEArch`.
    """

    over_arch_class = MMoEArch
