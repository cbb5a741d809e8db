"""AITM: adaptive information transfer multi-task framework (Xi et al., KDD 2021, arXiv 2105.08489).

Symbols: ``q_t = f_t(x)`` a task's own representation, ``own[t]``; ``p_{t-1} = g_{t-1}(z_{t-1})`` what the task before
passes on; ``z_t = AIT(p_{t-1}, q_t)`` what a task predicts from, ``states[t]``, with ``z_1 = q_1``; all ``[B, D]``.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from torchrec_mtl.errors import InputError
from torchrec_mtl.models.base import FlatModel
from torchrec_mtl.modules import InformationTransfer, TaskTowers, hidden_layers


class AITMArch(nn.Module):
    """A representation a task, transfers from task to task, ``y_t = sigmoid(MLP(z_t))``.

    Where the paper leaves a choice the authors' published code is followed: ``f_t`` ends in a ReLU; ``g_t`` is one
    ReLU layer, with dropout as in ``f_t``; the last MLP is one linear layer; all steps share one `InformationTransfer`.
    That code also normalises every layer by its batch, which is left out here as in the other models.

    Args:
        in_features: width of the flattened embeddings, ``F * D``.
        num_tasks: ``T``.
        tower_layer_sizes: the layers of ``f_t``; the last is ``D``.
        dropout: probability of dropping a unit of ``f_t`` and ``g_t`` in training.

    Raises:
        InputError: if there is no layer.

    Example::

        >>> import torch
        >>> AITMArch(in_features=6 * 8, num_tasks=3)(torch.randn(2, 6, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        in_features: int,
        num_tasks: int,
        tower_layer_sizes: Sequence[int] = (256, 128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not tower_layer_sizes:
            raise InputError(f"`tower_layer_sizes` (={list(tower_layer_sizes)}) must have at least one layer")
        width = tower_layer_sizes[-1]
        self.representations = nn.ModuleList(
            hidden_layers(in_features, tower_layer_sizes, dropout) for _ in range(num_tasks)
        )
        self.information = nn.ModuleList(hidden_layers(width, [width], dropout) for _ in range(num_tasks - 1))
        self.transfer = InformationTransfer(width) if num_tasks > 1 else nn.Identity()
        self.towers = TaskTowers(num_tasks, width, layer_sizes=())

    def forward(self, embeddings: Tensor) -> Tensor:
        """``[B, F, D]`` or ``[B, F * D]`` to logits ``[B, T]``."""
        own = [representation(embeddings.flatten(1)) for representation in self.representations]
        states = own[:1]
        for inform, query in zip(self.information, own[1:], strict=True):
            states.append(self.transfer(inform(states[-1]), query))
        return self.towers(states)


class AITM(FlatModel):
    """`AITMArch` on the embeddings; train it with `torchrec_mtl.losses.CalibratedLoss`.

    Args: those of `FlatModel`, then `AITMArch`'s.

    Raises:
        InputError: if ``tower_layer_sizes`` is empty.
    """

    over_arch_class = AITMArch
