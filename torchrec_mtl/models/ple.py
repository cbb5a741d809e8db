"""PLE: experts of each task and shared ones, extracted layer by layer (Tang et al., RecSys 2020, section 4).

Symbols: ``g^{k,j}`` task ``k``'s state after layer ``j``, ``g^{s,j}`` the shared one, all in ``states``; ``w^{k,j}``
a gate; ``t^k`` a tower; ``N`` layers.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from torchrec_mtl.errors import InputError
from torchrec_mtl.models.base import FlatModel
from torchrec_mtl.modules import ExtractionLayer, GateKind, TaskTowers


class PLEArch(nn.Module):
    """Extraction layers, then towers: PLE eq. (5)-(6); with one layer CGC, eq. (1)-(4).

    Choices: gates are linear without bias, as eq. (2) has them, and read the state of the layer before, as eq. (5)
    says (some programs give them the embeddings); experts have ReLU after every layer, the last one too; all layers
    have the same numbers and sizes of experts.

    Args:
        in_features: width of the flattened embeddings, ``F * D``.
        num_tasks: ``T``.
        num_layers: ``N``, extraction layers; the last has no shared gate.
        num_task_experts: ``m_k``, experts of each task in each layer; may be 0.
        num_shared_experts: ``m_s``, shared experts in each layer.
        expert_layer_sizes: an expert's layers, in each extraction layer.
        tower_layer_sizes: hidden layers of each tower.
        dropout: probability of dropping a tower's hidden unit in training.
        gate: ``"softmax"``, or ``"dselect_k"`` for `torchrec_mtl.modules.DSelectGate`.
        num_selected, per_example, gamma: of DSelect-k.

    Raises:
        InputError: if there is no extraction layer, shared expert or layer of an expert, or for a gate's argument,
            see `torchrec_mtl.modules.make_gate`.

    Example::

        >>> import torch
        >>> PLEArch(in_features=6 * 8, num_tasks=3)(torch.randn(2, 6, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        in_features: int,
        num_tasks: int,
        num_layers: int = 2,
        num_task_experts: int = 2,
        num_shared_experts: int = 2,
        expert_layer_sizes: Sequence[int] = (256, 128),
        tower_layer_sizes: Sequence[int] = (64,),
        dropout: float = 0.0,
        gate: GateKind = "softmax",
        num_selected: int = 2,
        per_example: bool = True,
        gamma: float = 1.0,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise InputError(f"`num_layers` (={num_layers}) must be at least 1")
        self.num_tasks = num_tasks
        self.layers = nn.ModuleList(
            ExtractionLayer(
                num_tasks,
                expert_layer_sizes[-1] if layer else in_features,
                num_task_experts,
                num_shared_experts,
                expert_layer_sizes,
                layer < num_layers - 1,
                gate,
                num_selected,
                per_example,
                gamma,
            )
            for layer in range(num_layers)
        )
        self.towers = TaskTowers(num_tasks, expert_layer_sizes[-1], tower_layer_sizes, dropout)

    def forward(self, embeddings: Tensor) -> Tensor:
        """``[B, F, D]`` or ``[B, F * D]`` to logits ``[B, T]``."""
        states = [embeddings.flatten(1)] * (self.num_tasks + 1)
        for layer in self.layers:
            states = layer(states)
        return self.towers(states)


class PLE(FlatModel):
    """`PLEArch` on the embeddings.

    Args: those of `FlatModel`, then `PLEArch`'s.

    Raises:
        InputError: see `PLEArch`.
    """

    over_arch_class = PLEArch
