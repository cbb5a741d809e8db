"""The relations that MRAN learns (Zhao et al., KDD 2019, section 3): between tasks, and of tasks to features."""

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least
from torchrec_mtl.modules.attention import Attention, check_heads


class TaskRelations(nn.Module):
    """``O = LayerNorm(Y + Attention(Y, Y))``: what the tasks take from each other, section 3.2.

    ``Y [T, D]`` is learnt, a row for each task, and so is the same for every sample.

    Args:
        num_tasks: number of tasks, ``T``.
        embedding_dim: width of a task's row, ``D``.
        num_heads: number of heads; must divide ``D``.

    Raises:
        InputError: if a number is below 1, or ``num_heads`` does not divide ``embedding_dim``.

    Example::

        >>> TaskRelations(num_tasks=3, embedding_dim=8)().shape
        torch.Size([3, 8])
    """

    @checked
    def __init__(self, num_tasks: int, embedding_dim: int, num_heads: int = 1) -> None:
        super().__init__()
        check_at_least(1, num_tasks=num_tasks)
        self.attention = Attention(embedding_dim, num_heads)
        self.norm = nn.LayerNorm(embedding_dim)
        self.tasks = nn.Parameter(torch.empty(num_tasks, embedding_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws ``Y`` as Xavier uniform; the attention and the norm reset themselves."""
        nn.init.xavier_uniform_(self.tasks)

    def forward(self) -> Tensor:
        """Returns ``O [T, D]``."""
        tasks = self.tasks.unsqueeze(0)
        return self.norm(tasks + self.attention(tasks, tasks)).squeeze(0)


class TaskFeatureAlignment(nn.Module):
    """Gives each task the features that it depends on: section 3.4.

    In every head, with ``H`` the features, ``O`` the tasks and ``*`` the elementwise product::

        alpha_t = softmax(O_t Wq (H Wk)^T / sqrt(d_h)),    C_t = LayerNorm(H + alpha_t * H)

    ``alpha_t`` has a weight for each field, by which its columns of the head are multiplied. The norm is over all
    fields and columns of a task, as a norm of each field alone would undo the weights.

    Args:
        num_fields: number of fields, ``F``.
        embedding_dim: embedding dimension, ``D``.
        num_heads: number of heads; must divide ``D``.

    Raises:
        InputError: if a number is below 1, or ``num_heads`` does not divide ``embedding_dim``.

    Example::

        >>> TaskFeatureAlignment(num_fields=6, embedding_dim=8)(torch.randn(3, 8), torch.randn(2, 6, 8)).shape
        torch.Size([2, 3, 6, 8])
    """

    @checked
    def __init__(self, num_fields: int, embedding_dim: int, num_heads: int = 1) -> None:
        super().__init__()
        check_at_least(1, num_fields=num_fields)
        check_heads(embedding_dim, num_heads)
        self.heads = (num_heads, embedding_dim // num_heads)
        self.query = nn.Linear(embedding_dim, embedding_dim, bias=False)
        self.key = nn.Linear(embedding_dim, embedding_dim, bias=False)
        self.norm = nn.LayerNorm([num_fields, embedding_dim])

    def forward(self, tasks: Tensor, features: Tensor) -> Tensor:
        """Maps ``O [T, D]`` and ``H [B, F, D]`` to ``C [B, T, F, D]``."""
        queries, keys = self.query(tasks).unflatten(1, self.heads), self.key(features).unflatten(2, self.heads)
        scores = torch.einsum("tmd,bfmd->btfm", queries, keys) / self.heads[1] ** 0.5
        weights = 1 + scores.softmax(2).unsqueeze(4)
        return self.norm((weights * features.unflatten(2, self.heads).unsqueeze(1)).flatten(3))
