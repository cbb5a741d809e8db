"""The short way through tables that are not sharded, or on one rank: one operation for all of them."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import get_embedding_names_by_table

from torchrec_mtl.ops import embedding_bag, library


class DirectLookup:
    """Reads the tables of an `EmbeddingBagCollection` as they lie, and leaves the collection what it is.

    `values` gives what the collection would, to the last bit if a bag has one id, and so are the tables' gradients. It
    gives None, and the collection has to be called, if a graph is being made of the model, the collection or one of its
    tables is of another class, has hooks or sparse gradients, the weights of ids need a gradient, or the kernel cannot
    run: it is not built, or the tables are not float32 on the CPU (of others, TorchRec rounds what it returns).

    A sharded collection says itself whether it can be read at once.

    Args:
        configs: the tables of the collection.
    """

    def __init__(self, configs: Sequence[EmbeddingBagConfig]) -> None:
        features = [(place, config, name) for place, config in enumerate(configs) for name in config.feature_names]
        self._names = [config.name for config in configs]
        self._table_of_field = [place for place, *_ in features]
        self._mean_of_field = [config.pooling == PoolingType.MEAN for _, config, _ in features]
        self._feature_names = [name for *_, name in features]
        self._embedding_names = list(chain.from_iterable(get_embedding_names_by_table(list(configs))))

    def values(self, collection: Any, sparse_features: KeyedJaggedTensor) -> Tensor | None:
        """The fields side by side, ``[B, sum(D_f)]``, in the order of the configs; or None."""
        if _is_traced(sparse_features):
            return None
        if type(collection) is not EmbeddingBagCollection:
            return self._of_sharded(collection, sparse_features)
        if collection.is_weighted() and any(self._mean_of_field):  # which PyTorch refuses
            return None
        tables = self._tables(collection)
        weights = sparse_features.weights() if collection.is_weighted() else None
        read = tables if weights is None else [*tables, weights]
        if not tables or tables[0].dtype != torch.float32 or library.why_not(*read):
            return None
        if sparse_features.variable_stride_per_key():
            return None
        if not sparse_features.values().is_cpu or (weights is not None and weights.requires_grad):
            return None
        place = {key: position for position, key in enumerate(sparse_features.keys())}
        return embedding_bag.lookup(
            tables,
            self._table_of_field,
            [place[name] for name in self._feature_names],
            self._mean_of_field,
            sparse_features.values(),
            sparse_features.offsets(),
            sparse_features.stride(),
            weights,
        )

    def _of_sharded(self, collection: Any, sparse_features: KeyedJaggedTensor) -> Tensor | None:
        at_once = getattr(collection, "at_once", None)  # of `torchrec_mtl.training.sharded_tables`
        if at_once is None or collection._forward_hooks or collection._forward_pre_hooks:
            return None
        if "forward" in collection.__dict__ or collection._embedding_names != self._embedding_names:
            return None  # a pipeline has the exchange under way, or the order is another
        values: Tensor | None = at_once(sparse_features)
        return values

    def _tables(self, collection: EmbeddingBagCollection) -> list[Tensor]:
        """The collection's tables; none if something else has to be called to read them."""
        if collection._forward_hooks or collection._forward_pre_hooks:
            return []
        tables, bags = [], collection.embedding_bags
        for name in self._names:
            bag = bags[name]
            if type(bag) is not nn.EmbeddingBag or bag.sparse or bag._forward_hooks or bag._forward_pre_hooks:
                return []
            tables.append(bag.weight)
        return tables


def _is_traced(sparse_features: Any) -> bool:
    made_into_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
    transformed = torch._C._are_functorch_transforms_active()  # as by `torch.func.grad`
    return made_into_graph or transformed or not isinstance(sparse_features, KeyedJaggedTensor)
