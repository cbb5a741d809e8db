"""Maps sparse and dense features to the embeddings of fields: the part of every model below its over arch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed.types import Awaitable, ShardedModule
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import get_embedding_names_by_table
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError, check_at_least, check_sizes, not_one_of
from torchrec_mtl.modules.batch_layout import BatchLayout
from torchrec_mtl.modules.direct_lookup import DirectLookup
from torchrec_mtl.modules.gate_unit import EmbeddingGate
from torchrec_mtl.modules.history_arch import HistoryArch
from torchrec_mtl.modules.id_hash import ANY_ID
from torchrec_mtl.modules.initialization import initialize_linear_layers
from torchrec_mtl.modules.mlp import MLP
from torchrec_mtl.modules.zero_collision import ZeroCollisionEmbeddingBagCollection


def _inner(collection: Any) -> Any:
    if isinstance(collection, ManagedCollisionEmbeddingBagCollection):
        return collection._embedding_module
    if isinstance(collection, FeatureProcessedEmbeddingBagCollection):
        return collection._embedding_bag_collection
    return collection


def embedding_configs(embedding_bag_collection: nn.Module) -> list[EmbeddingBagConfig]:
    """Returns the tables of a collection of pooled embeddings, however it preprocesses ids before the lookup.

    Raises:
        InputError: if it is not one of TorchRec's collections, or has no table.
    """
    collection = _inner(embedding_bag_collection)
    if not hasattr(collection, "embedding_bag_configs"):
        kind = type(embedding_bag_collection).__name__
        raise InputError(f"`embedding_bag_collection` (={kind}) must have TorchRec's `embedding_bag_configs()`")
    configs: list[EmbeddingBagConfig] = list(collection.embedding_bag_configs())
    if not configs:
        raise InputError("`embedding_bag_collection` must have at least one table")
    return configs


def batch_layout(
    embedding_bag_collection: nn.Module,
    dense_in_features: int,
    zero_collision: nn.Module | None = None,
    histories: HistoryArch | None = None,
) -> BatchLayout:
    """Returns what batches for these collections and so many dense columns must look like."""
    sizes: dict[str, int] = {}
    for collection in (embedding_bag_collection, *filter(None, [zero_collision])):
        takes_any_id = isinstance(collection, ManagedCollisionEmbeddingBagCollection)
        for config in embedding_configs(collection):
            for key in config.feature_names:
                size = ANY_ID if takes_any_id else config.num_embeddings
                sizes[key] = min(size, sizes.get(key, size))
    if histories is not None:
        sizes |= {
            key: config.num_embeddings
            for config in histories.embedding_collection.embedding_configs()
            for key in config.feature_names
        }
    # processors make the weights themselves
    made = isinstance(embedding_bag_collection, FeatureProcessedEmbeddingBagCollection)
    is_weighted = None if made else getattr(_inner(embedding_bag_collection), "is_weighted", None)
    return BatchLayout(sizes, None if is_weighted is None else is_weighted(), dense_in_features)


def _check_histories(histories: HistoryArch, others: Sequence[str]) -> None:
    for name in histories.feature_names:
        if name in others:
            raise InputError(f"feature {name!r} of `histories` must not be in another collection too")


class FeatureArch(nn.Module):
    """Looks up and pools the sparse features, and maps the dense features to one more field.

    A model holds one of these or several, for example one for each task. The fields are taken from the collection's
    output by name, because a collection that is sharded over several ranks returns them in another order.

    TAFE eq. (13) has no dense features. It log-rounds numbers to ids and embeds them like any other field: see
    `torchrec_mtl.data.log_round`.

    Args:
        embedding_bag_collection: embedding tables: an EmbeddingBagCollection, sharded or not, or TorchRec's collection
            with managed collisions or with processed features, which have the same interface.
        zero_collision: tables of further features, whose ids have no vocabulary; their fields come after the others.
        histories: tables of further features, some of which are histories; their fields come after these.
        dense_in_features: number of dense features; with 0 there is no dense field.
        dense_arch_layer_sizes: layer widths of the MLP on the dense features; the last is the dimension of their field.
        domain_fields: names of sparse fields that tell domains apart, such as the page or the app: they scale all
            fields, by an `EmbeddingGate`. Without any there is no gate.
        dense_device: device of these MLPs and of the model's other dense parameters.
        check_batches: whether to check the form of every batch; see `forward`.

    Attributes:
        embedding_names: names of the sparse fields in output order, table by table and feature by feature as given.
        field_dims: dimension ``D_f`` of each field; the dense field comes last.
        out_features: width of the output, ``sum(D_f)``.
        widest: largest dimension of a sparse field.
        layout: the form that every batch must have.

    Raises:
        InputError: if there is no table, the collection is of another kind, there are dense features but no layers, or
            there are histories and a feature is of two collections, or ids have weights, or a name of ``domain_fields``
            is not in ``embedding_names`` or occurs twice.

    Example::

        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> tables = [EmbeddingBagConfig(name=f"t_{f}", embedding_dim=d, num_embeddings=9, feature_names=[f])
        ...           for f, d in [("user", 8), ("item", 4)]]
        >>> features = FeatureArch(
        ...     EmbeddingBagCollection(tables=tables), dense_in_features=3, dense_arch_layer_sizes=(16, 6))
        >>> ids = KeyedJaggedTensor.from_lengths_sync(["user", "item"], torch.arange(4), torch.ones(4).int())
        >>> features(torch.randn(2, 3), ids).shape, features.field_dims
        (torch.Size([2, 18]), [8, 4, 6])
    """

    @checked
    def __init__(
        self,
        embedding_bag_collection: nn.Module,
        *,
        zero_collision: ZeroCollisionEmbeddingBagCollection | None = None,
        histories: HistoryArch | None = None,
        dense_in_features: int = 0,
        dense_arch_layer_sizes: Sequence[int] = (64,),
        domain_fields: Sequence[str] = (),
        dense_device: torch.device | None = None,
        check_batches: bool = True,
    ) -> None:
        super().__init__()
        configs = embedding_configs(embedding_bag_collection)
        self._direct_lookup = DirectLookup(configs)
        names = get_embedding_names_by_table(configs)
        self._plain_names = [name for table in names for name in table]
        if zero_collision is not None:
            configs += embedding_configs(zero_collision)
            names += get_embedding_names_by_table(embedding_configs(zero_collision))
        if histories is not None:
            _check_histories(histories, [name for config in configs for name in config.feature_names])
            names.append(histories.feature_names)
        check_at_least(0, dense_in_features=dense_in_features)
        check_sizes(1 if dense_in_features else 0, dense_arch_layer_sizes=dense_arch_layer_sizes)
        self.embedding_bag_collection = embedding_bag_collection
        self.zero_collision, self.histories = zero_collision, histories
        self.returns_ids = isinstance(embedding_bag_collection, ManagedCollisionEmbeddingBagCollection)
        self.embedding_names = [name for table in names for name in table]
        dims = [config.embedding_dim for config in configs] + ([] if histories is None else [histories.embedding_dim])
        self.field_dims = [dim for dim, table in zip(dims, names, strict=True) for _ in table]
        self.widest = max(self.field_dims)
        self.layout = batch_layout(embedding_bag_collection, dense_in_features, zero_collision, histories)
        if histories is not None and self.layout.is_weighted:
            raise InputError("`embedding_bag_collection` must not have weights of ids beside `histories`")
        self.check_batches = check_batches
        self._dtype = torch.get_default_dtype()
        self.dense_device = dense_device or torch.get_default_device()
        self.dense_arch: nn.Module | None = None
        if dense_in_features:
            self.field_dims.append(dense_arch_layer_sizes[-1])
            with torch.device(self.dense_device):
                self.dense_arch = MLP(dense_in_features, dense_arch_layer_sizes)
            initialize_linear_layers(self.dense_arch)
        self.out_features = sum(self.field_dims)
        self.domain_gate: nn.Module | None = None
        if domain_fields:
            with torch.device(self.dense_device):
                self.domain_gate = EmbeddingGate(self.field_dims, self.positions(domain_fields=domain_fields))
            initialize_linear_layers(self.domain_gate)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """Maps ``[B, num_dense]`` and the sparse features to the concatenated fields, ``[B, sum(D_f)]``.

        Both are in the type of the module, so a model may be ``half()`` or ``bfloat16()`` and its batches float32.

        Raises:
            InputError: if a batch has other keys than the first one or another order of them, lacks a table's key, has
                weights of ids where the tables use none, or the reverse, has another number of dense columns, or has no
                rows and the tables are not sharded. A graph traced by FX or TorchScript does not check.
        """
        if not torch.jit.is_scripting():
            self._check(dense_features, sparse_features)
        fields = self._pooled(sparse_features)
        if self.zero_collision is not None:
            embeddings = self.zero_collision(sparse_features)[0].to_dict()
            fields += [embeddings[name] for name in self.zero_collision.feature_names]
        if self.histories is not None:
            fields.append(self.histories(sparse_features, self._dtype))
        if self.dense_arch is not None:
            fields.append(self.dense_arch(self._cast(dense_features)))
        embeddings = self._cast(torch.cat(fields, dim=1) if len(fields) > 1 else fields[0])
        return embeddings if self.domain_gate is None else self.domain_gate(embeddings)

    def positions(self, **fields: Sequence[str]) -> list[int]:
        """The positions of sparse fields, given by the name of an argument and theirs.

        Raises:
            InputError: if a name is not in ``embedding_names``.
        """
        ((argument, names),) = fields.items()
        for name in names:
            if name not in self.embedding_names:
                raise InputError(not_one_of(f"`{argument}`", name, self.embedding_names))
        return [self.embedding_names.index(name) for name in names]

    def _pooled(self, sparse_features: KeyedJaggedTensor) -> list[Tensor]:
        """The fields of `embedding_bag_collection`, or one tensor of all of them side by side."""
        values = self._direct_lookup.values(self.embedding_bag_collection, sparse_features)
        if values is not None:
            return [values]
        pooled = self.embedding_bag_collection(sparse_features)
        if self.returns_ids:
            pooled = pooled[0]
        if isinstance(pooled, Awaitable):
            pooled = pooled.wait()
        if not isinstance(pooled, torch.fx.Proxy) and pooled.keys() == self._plain_names:
            return [pooled.values()]
        embeddings = pooled.to_dict()
        return [embeddings[name] for name in self._plain_names]

    def _cast(self, values: Tensor) -> Tensor:
        # TorchRec's tables give float32, whatever they hold
        return values if self._dtype == torch.float32 else values.to(self._dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FeatureArch":
        super()._apply(fn, recurse)
        self._dtype = fn(torch.empty(0, dtype=self._dtype)).dtype  # follows half(), bfloat16(), double()
        return self

    def _check(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> None:
        # TorchRec's pipelines trace a model to find its tables, and then run the model itself
        if self.check_batches and not isinstance(sparse_features, torch.fx.Proxy):
            self.layout.check(dense_features, sparse_features)
            if sparse_features.stride() == 0 and not isinstance(self.embedding_bag_collection, ShardedModule):
                raise InputError("`sparse_features` must have at least one row, as TorchRec's tables need one")


@checked
def as_features(features: nn.Module) -> FeatureArch:
    """Returns ``features`` if it is a `FeatureArch`, and otherwise makes one from it, a bare collection of tables."""
    return features if isinstance(features, FeatureArch) else FeatureArch(features)


class FieldProjection(nn.Module):
    """Projects fields of different dimensions to one dimension: a linear map for each field that has another one.

    Args:
        field_dims: dimension ``D_f`` of each of the ``F`` fields.
        embedding_dim: embedding dimension, ``D``.

    Raises:
        InputError: if there is no field, or a dimension is below 1.

    Example::

        >>> FieldProjection([8, 4, 4], embedding_dim=4)(torch.randn(2, 16)).shape
        torch.Size([2, 3, 4])
    """

    @checked
    def __init__(self, field_dims: Sequence[int], embedding_dim: int) -> None:
        super().__init__()
        check_sizes(1, field_dims=field_dims)
        check_at_least(1, embedding_dim=embedding_dim)
        self.field_dims = list(field_dims)
        self.embedding_dim = embedding_dim
        self.projections = nn.ModuleList(
            nn.Identity() if dim == embedding_dim else nn.Linear(dim, embedding_dim, bias=False) for dim in field_dims
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        """Maps ``[B, sum(D_f)]`` to ``[B, F, D]``."""
        if all(dim == self.embedding_dim for dim in self.field_dims):
            return embeddings.reshape(-1, len(self.field_dims), self.embedding_dim)
        fields = embeddings.split(self.field_dims, dim=1)
        return torch.stack([project(fields[f]) for f, project in enumerate(self.projections)], dim=1)
