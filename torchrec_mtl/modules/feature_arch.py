"""Sparse and dense features to embeddings: what every model has below its over arch."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection, get_embedding_names_by_table
from torchrec.modules.mlp import MLP
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.errors import InputError


class SparseArch(nn.Module):
    """Looks up and pools the sparse features.

    The fields are taken from the collection's output by name: sharded over several ranks, it returns them in
    another order than unsharded.

    Args:
        embedding_bag_collection: the tables, sharded or not.

    Attributes:
        embedding_names: the fields in output order: the tables', and within a table its features', as given.
        field_dims: ``D_f`` of each field.

    Raises:
        InputError: if there is no table.

    Example::

        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> tables = [EmbeddingBagConfig(name=f"t_{f}", embedding_dim=d, num_embeddings=9, feature_names=[f])
        ...           for f, d in [("user", 8), ("item", 4)]]
        >>> arch = SparseArch(EmbeddingBagCollection(tables=tables))
        >>> ids = KeyedJaggedTensor.from_lengths_sync(["user", "item"], torch.arange(4), torch.ones(4).int())
        >>> arch(ids).shape, arch.field_dims
        (torch.Size([2, 12]), [8, 4])
    """

    def __init__(self, embedding_bag_collection: EmbeddingBagCollection) -> None:
        super().__init__()
        configs = embedding_bag_collection.embedding_bag_configs()
        if not configs:
            raise InputError("`embedding_bag_collection` must have at least one table")
        self.embedding_bag_collection = embedding_bag_collection
        names = get_embedding_names_by_table(configs)
        self.embedding_names = [name for table in names for name in table]
        self.field_dims = [c.embedding_dim for c, table in zip(configs, names, strict=True) for _ in table]

    def forward(self, sparse_features: KeyedJaggedTensor) -> Tensor:
        """Pooled embeddings side by side, ``[B, sum(D_f)]``."""
        embeddings = self.embedding_bag_collection(sparse_features).to_dict()
        return torch.cat([embeddings[name] for name in self.embedding_names], dim=1)


class FieldProjection(nn.Module):
    """Brings fields of different dimensions to one: a linear map for each field that is not of it already.

    Args:
        field_dims: ``D_f`` of each of the ``F`` fields.
        embedding_dim: ``D``.

    Example::

        >>> FieldProjection([8, 4, 4], embedding_dim=4)(torch.randn(2, 16)).shape
        torch.Size([2, 3, 4])
    """

    def __init__(self, field_dims: Sequence[int], embedding_dim: int) -> None:
        super().__init__()
        self.field_dims = list(field_dims)
        self.embedding_dim = embedding_dim
        self.projections = nn.ModuleList(
            nn.Identity() if dim == embedding_dim else nn.Linear(dim, embedding_dim, bias=False) for dim in field_dims
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        """``[B, sum(D_f)]`` to ``[B, F, D]``."""
        if all(dim == self.embedding_dim for dim in self.field_dims):
            return embeddings.reshape(-1, len(self.field_dims), self.embedding_dim)
        fields = embeddings.split(self.field_dims, dim=1)
        return torch.stack([project(field) for project, field in zip(self.projections, fields, strict=True)], dim=1)


class DenseArch(nn.Module):
    """Dense features to one more field, through an MLP.

    TAFE eq. (13) has numbers log-rounded to ids and embedded like any other field instead: see
    `torchrec_mtl.data.log_round`.

    Args:
        in_features: number of dense features; 0 for none, and then there is no field.
        layer_sizes: the MLP's layers; the last is the field's dimension.

    Attributes:
        field_dims: the dimension of its field in a list, empty without dense features.

    Raises:
        InputError: if there are dense features but no layers.
    """

    def __init__(self, in_features: int, layer_sizes: Sequence[int]) -> None:
        super().__init__()
        if in_features and not layer_sizes:
            raise InputError(f"`dense_arch_layer_sizes` must not be empty with `dense_in_features` (={in_features})")
        self.field_dims = [layer_sizes[-1]] if in_features else []
        self.mlp = MLP(in_features, list(layer_sizes)) if in_features else None

    def forward(self, dense_features: Tensor) -> Tensor:
        """``[B, in_features]`` to ``[B, layer_sizes[-1]]``, or ``[B, 0]`` without dense features."""
        return dense_features[:, :0] if self.mlp is None else self.mlp(dense_features)
