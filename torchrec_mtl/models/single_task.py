"""Single-Task: a model a task, the base that the papers measure gains against."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.modules import DenseArch, SparseArch, Tower, initialize_linear_layers
from torchrec_mtl.tasks import TaskChain


class SingleTask(nn.Module):
    """An MLP a task with embedding tables of its own: nothing is shared (TAFE section 4.1.2; BPCM's "MLP").

    Its parameters are ``T`` times one model's, as in TAFE figure 8.

    Args:
        embedding_bag_collection: the tables; each task gets a copy.
        tasks: the funnel, ``T`` tasks.
        dense_in_features: number of dense features.
        dense_arch_layer_sizes: MLP of the dense features.
        layer_sizes: hidden layers of each task's MLP, ReLU between; the papers' by default.
        dropout: probability of dropping a hidden unit in training.
        dense_device: device of everything but the tables.

    Example::

        >>> from torchrec import EmbeddingBagConfig
        >>> table = EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=9, feature_names=["item"])
        >>> model = SingleTask(EmbeddingBagCollection(tables=[table]), TaskChain(["click", "purchase"]))
        >>> ids = KeyedJaggedTensor.from_lengths_sync(["item"], torch.tensor([3, 5]), torch.tensor([1, 1]))
        >>> model(torch.empty(2, 0), ids).shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        embedding_bag_collection: EmbeddingBagCollection,
        tasks: TaskChain,
        dense_in_features: int = 0,
        dense_arch_layer_sizes: Sequence[int] = (64,),
        layer_sizes: Sequence[int] = (256, 128, 64),
        dropout: float = 0.0,
        dense_device: torch.device | None = None,
    ) -> None:
        super().__init__()
        collections = [copy.deepcopy(embedding_bag_collection) for _ in range(len(tasks) - 1)]
        sparse_archs = [SparseArch(collection) for collection in (embedding_bag_collection, *collections)]
        with torch.device(dense_device or torch.get_default_device()):
            dense_archs = [DenseArch(dense_in_features, dense_arch_layer_sizes) for _ in tasks]
            in_features = sum(sparse_archs[0].field_dims + dense_archs[0].field_dims)
            self.over_arch = nn.ModuleList(Tower(in_features, layer_sizes, dropout) for _ in tasks)
        self.sparse_arch = nn.ModuleList(sparse_archs)
        self.dense_arch = nn.ModuleList(dense_archs)
        initialize_linear_layers(self)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """``[B, num_dense]`` and the sparse features to marginal logits ``[B, T]``."""
        logits = []
        for sparse_arch, dense_arch, tower in zip(self.sparse_arch, self.dense_arch, self.over_arch, strict=True):
            embeddings = torch.cat([sparse_arch(sparse_features), dense_arch(dense_features)], dim=1)
            logits.append(tower(embeddings))
        return torch.cat(logits, dim=1)
