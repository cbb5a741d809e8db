"""Histories: fields whose order matters, attended by the candidate.

A history holds the ids of what a user did, oldest first; the candidate is the field of what is offered now. Both are
looked up in one table, row by row, by TorchRec's `EmbeddingCollection`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchrec.distributed.types import Awaitable
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError, check_at_least
from torchrec_mtl.modules import jagged
from torchrec_mtl.modules.history_attention import HistoryTransformer, TargetAttention


class HistoryFields(nn.Module):
    """The fields of an `EmbeddingCollection`: of its rows, histories are attended, and others are pooled.

    Args:
        feature_names: keys of the collection, in the order of the fields.
        embedding_dim: dimension ``D`` of its tables.
        candidates: key of the candidate that attends each history, by the history's key.
        averaged: keys of features whose rows are averaged; those of others that are no histories are summed.
        max_length: number of rows of a history that are read, the newest.
        transformer_layers: number of layers of `HistoryTransformer` that a history goes through; without any, it is
            attended as it is. After them, the candidate's weights add up to 1, as the rows are normalised.
        num_heads: number of heads of these layers.
        layer_size: width of the hidden layer of `TargetAttention`.

    Raises:
        InputError: if a number is out of its range, or a history or candidate is no key of the collection.
    """

    @checked
    def __init__(
        self,
        feature_names: Sequence[str],
        embedding_dim: int,
        candidates: Mapping[str, str],
        *,
        averaged: Sequence[str] = (),
        max_length: int = 50,
        transformer_layers: int = 0,
        num_heads: int = 1,
        layer_size: int = 36,
    ) -> None:
        super().__init__()
        check_at_least(1, max_length=max_length, num_heads=num_heads, layer_size=layer_size)
        check_at_least(0, transformer_layers=transformer_layers)
        for name in (*candidates, *candidates.values(), *averaged):
            if name not in feature_names:
                raise InputError(f"`candidates` and `averaged` (={name!r}) must be of the keys {list(feature_names)}")
        self.feature_names, self.candidates, self.averaged = list(feature_names), dict(candidates), set(averaged)
        self.max_length = max_length
        self.transformers, self.attentions = nn.ModuleList(), nn.ModuleList()  # a key may hold dots, a name may not
        for _ in self.candidates:
            if transformer_layers:
                sizes = {"num_layers": transformer_layers, "num_heads": num_heads, "max_length": max_length}
                self.transformers.append(HistoryTransformer(embedding_dim, **sizes))
            self.attentions.append(
                TargetAttention(embedding_dim, layer_size=layer_size, softmax=bool(transformer_layers))
            )

    def forward(self, rows: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Maps the rows of each key, ``[V_f, D]`` and ``lengths [B]``, to the fields side by side, ``[B, F D]``."""
        fields = {name: self._pooled(name, *rows[name]) for name in self.feature_names if name not in self.candidates}
        for place, (name, candidate) in enumerate(self.candidates.items()):
            history, lengths = jagged.newest(*rows[name], self.max_length)
            if self.transformers:
                history = self.transformers[place](history, lengths)
            fields[name] = self.attentions[place](history, lengths, fields[candidate])
        return torch.cat([fields[name] for name in self.feature_names], dim=1)

    def _pooled(self, name: str, values: Tensor, lengths: Tensor) -> Tensor:
        pooled = jagged.summed(values, lengths)
        return pooled / lengths.clamp(min=1)[:, None] if name in self.averaged else pooled


class HistoryArch(nn.Module):
    """Tables whose rows are read one by one, and the fields that are made of them, for a `FeatureArch`.

    Args:
        embedding_collection: tables of the histories and of their candidates.
        candidates: key of the candidate that attends each history, by the history's key; both are of one table.
        averaged, max_length, transformer_layers, num_heads, layer_size: see `HistoryFields`.
        dense_device: device of the dense parameters.

    Attributes:
        feature_names: keys in the order of the fields, table by table.
        embedding_dim: dimension ``D`` of every table and field.

    Raises:
        InputError: if the collection is of another kind, a history and its candidate are not features of one table, a
            candidate is a history, a key is of two tables, or a number is out of its range.

    Example::

        >>> from torchrec import EmbeddingConfig
        >>> items = EmbeddingConfig(name="t_item", embedding_dim=4, num_embeddings=9, feature_names=["item", "seen"])
        >>> histories = HistoryArch(EmbeddingCollection(tables=[items]), {"seen": "item"})
        >>> ids = torch.tensor([3, 8, 1, 2, 4])  # items 3 and 8; seen: 1, 2 and 4 by the first, nothing by the second
        >>> ids = KeyedJaggedTensor.from_lengths_sync(["item", "seen"], ids, torch.tensor([1, 1, 3, 0]))
        >>> item, seen = histories(ids).split(4, dim=1)
        >>> seen.shape, seen[1].tolist()
        (torch.Size([2, 4]), [0.0, 0.0, 0.0, 0.0])
    """

    @checked
    def __init__(
        self,
        embedding_collection: nn.Module,
        candidates: Mapping[str, str],
        *,
        averaged: Sequence[str] = (),
        max_length: int = 50,
        transformer_layers: int = 0,
        num_heads: int = 1,
        layer_size: int = 36,
        dense_device: torch.device | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(embedding_collection, EmbeddingCollection):
            kind = type(embedding_collection).__name__
            raise InputError(f"`embedding_collection` (={kind}) must be TorchRec's `EmbeddingCollection`")
        configs = embedding_collection.embedding_configs()
        table_of = {name: config.name for config in configs for name in config.feature_names}
        self.feature_names = [name for config in configs for name in config.feature_names]
        self.embedding_dim = embedding_collection.embedding_dim()
        if len(table_of) < len(self.feature_names):
            raise InputError("`embedding_collection` must have each key in one table")
        for history, candidate in candidates.items():
            if table_of.get(history) is None or table_of.get(history) != table_of.get(candidate):
                rule = f"must be of one table of `embedding_collection`: {table_of}"
                raise InputError(f"`candidates` (={history!r}: {candidate!r}) {rule}")
            if candidate in candidates:
                raise InputError(f"`candidates` (={history!r}: {candidate!r}) must not name a history as a candidate")
        self.embedding_collection = embedding_collection
        with torch.device(dense_device or torch.get_default_device()):
            self.fields = HistoryFields(
                self.feature_names,
                self.embedding_dim,
                candidates,
                averaged=averaged,
                max_length=max_length,
                transformer_layers=transformer_layers,
                num_heads=num_heads,
                layer_size=layer_size,
            )

    def forward(self, sparse_features: KeyedJaggedTensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns the fields of ``feature_names`` side by side, ``[B, F D]``, computed in ``dtype``."""
        embeddings = self.embedding_collection(sparse_features)
        if isinstance(embeddings, Awaitable):
            embeddings = embeddings.wait()
        rows = {name: (embeddings[name].values().to(dtype), embeddings[name].lengths()) for name in self.feature_names}
        fields: Tensor = self.fields(rows)
        return fields
