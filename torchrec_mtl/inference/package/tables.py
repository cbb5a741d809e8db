"""Embedding tables as bytes and one lookup, for a graph without TorchRec's modules."""

import copy
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, EmbeddingCollection
from torchrec.inference.modules import quantize_inference_model
from torchrec.modules.embedding_configs import PoolingType
from torchrec.quant.embedding_modules import quant_prep_customize_row_alignment

from torchrec_mtl.errors import InputError, check_choice
from torchrec_mtl.modules import FeatureArch
from torchrec_mtl.modules.history_arch import HistoryFields

TABLE_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.qint8, "int4": torch.quint4x2}
_ALIGNMENT = 4  # bytes; 16, fbgemm's default, doubles INT8 rows of 16 values


class TableRows(nn.Module):
    """Looks ids up in rows of a given type; the rows are an argument, so that they can be mapped from a file.

    Args:
        collection: tables, on the CPU, not sharded.
        table_type: "fp32", "fp16", "int8" or "int4".

    Attributes:
        rows: bytes of all tables.
        keys: keys of the features, in the order of the ids.

    Raises:
        InputError: if the type is unknown, or the tables are not a plain EmbeddingBagCollection.
    """

    rows: Tensor
    weights_offsets: Tensor
    weights_tys: Tensor
    weights_placements: Tensor
    D_offsets: Tensor

    def __init__(self, collection: nn.Module, table_type: str) -> None:
        super().__init__()
        check_choice("table_type", table_type, list(TABLE_TYPES))
        if not isinstance(collection, EmbeddingBagCollection):
            kind = type(collection).__name__
            raise InputError(f"`features` must have a plain EmbeddingBagCollection to be exported, not a {kind}")
        tbe = _quantized(collection, table_type)
        configs = collection.embedding_bag_configs()
        self.keys = [key for config in configs for key in config.feature_names]
        self.is_weighted = bool(collection.is_weighted())
        self.dims = [config.embedding_dim for config in configs for _ in config.feature_names]
        self.sizes = [config.num_embeddings for config in configs for _ in config.feature_names]
        self.means = [config.pooling == PoolingType.MEAN for config in configs for _ in config.feature_names]
        for name in ("weights_offsets", "weights_tys", "D_offsets", "weights_placements"):
            self.register_buffer(name, getattr(tbe, name).clone())
        self.register_buffer("empty", torch.empty(0, dtype=torch.uint8))
        self.largest = [int(getattr(tbe, f"max_{kind}_D")) for kind in ("int2", "int4", "int8", "float16", "float32")]
        self.total_dim, self.alignment = int(tbe.total_D), int(tbe.row_alignment)
        self.rows = (tbe.weights_host if tbe.host_size else tbe.weights_dev).clone()

    def forward(self, rows: Tensor, ids: "Ids", features: Sequence[int] | None = None) -> list[Tensor]:
        """Returns the pooled embeddings of each feature, ``[B, D_f]``.

        Args:
            rows: bytes of all tables.
            ids: ids of the features.
            features: places of the features among all; by default all of them.
        """
        places = list(range(len(self.keys))) if features is None else list(features)
        dims = [self.dims[f] for f in places]
        offsets, types, placements = self.weights_offsets, self.weights_tys, self.weights_placements
        columns, width = self.D_offsets, self.total_dim
        if features is not None:
            offsets, types, placements = offsets[places], types[places], placements[places]
            ends = list(itertools.accumulate(dims, initial=0))
            columns, width = torch.tensor(ends, dtype=columns.dtype), ends[-1]
        lookup = torch.ops.fbgemm.int_nbit_split_embedding_codegen_lookup_function
        pooled: Tensor = lookup(
            rows,
            self.empty,
            placements,
            offsets,
            types,
            columns,
            width,
            *self.largest,
            ids.values,
            ids.offsets,
            0,  # sums; means are made below, so that all tables are one lookup
            ids.weights,
            output_dtype=0,
            row_alignment=self.alignment,
        )
        counts = ids.lengths.clamp(min=1).to(pooled.dtype)
        fields = pooled.split(dims, dim=1)
        return [
            x / counts[n, :, None] if self.means[f] else x for n, (f, x) in enumerate(zip(places, fields, strict=True))
        ]


def _quantized(collection: EmbeddingBagCollection, table_type: str) -> Any:
    """Returns fbgemm's module of the tables, all sum-pooled, with one feature for each of theirs."""
    holder = nn.Module()
    tables = [copy.copy(config) for config in collection.embedding_bag_configs()]
    for table in tables:
        table.pooling = PoolingType.SUM
    fresh = EmbeddingBagCollection(tables=tables, is_weighted=collection.is_weighted(), device=torch.device("meta"))
    for table in tables:
        fresh.embedding_bags[table.name] = collection.embedding_bags[table.name]
    holder.collection = fresh
    quant_prep_customize_row_alignment(holder, [EmbeddingBagCollection], _ALIGNMENT)
    quantized = quantize_inference_model(holder, quantization_dtype=TABLE_TYPES[table_type])
    found = [m for m in quantized.modules() if type(m).__name__ == "IntNBitTableBatchedEmbeddingBagsCodegen"]
    if len(found) != 1:
        raise InputError(f"the tables must become one lookup, but became {len(found)}")
    return found[0]


def _as_bags(collection: EmbeddingCollection) -> EmbeddingBagCollection:
    """The same tables in a collection of bags."""
    tables = [
        EmbeddingBagConfig(
            name=config.name,
            num_embeddings=config.num_embeddings,
            embedding_dim=config.embedding_dim,
            feature_names=config.feature_names,
            pooling=PoolingType.SUM,
        )
        for config in collection.embedding_configs()
    ]
    bags = EmbeddingBagCollection(tables=tables, device=torch.device("meta"))
    for name, table in collection.embeddings.items():
        bags.embedding_bags[name].weight = table.weight
    return bags


class GraphFeatures(nn.Module):
    """Stands in for a `FeatureArch`: takes ids as tensors, and rows as arguments.

    Args:
        arch: features of a trained model.
        table_type: type of the rows, see `TableRows`.

    Attributes:
        keys: keys of the features, in the order of the ids.
        sizes: number of ids of each key.
        rows: bytes of the tables of each collection.
        place: of the first of these among those of all features.
    """

    def __init__(self, arch: FeatureArch, table_type: str) -> None:
        super().__init__()
        self.tables = TableRows(arch.embedding_bag_collection, table_type)
        self.dense_arch, self.domain_gate = arch.dense_arch, arch.domain_gate
        self.place = 0  # of its rows among those of all tables
        self.of_histories: TableRows | None = None
        self.histories: HistoryFields | None = None
        of_both = [self.tables]
        if arch.histories is not None:
            self.of_histories = TableRows(_as_bags(arch.histories.embedding_collection), table_type)
            self.histories = arch.histories.fields
            of_both.append(self.of_histories)
        self.keys = [key for tables in of_both for key in tables.keys]
        self.sizes = [size for tables in of_both for size in tables.sizes]
        self.rows = [tables.rows for tables in of_both]

    def forward(self, dense_features: Tensor, lookup: "Lookup") -> Tensor:
        """Maps ``[B, num_dense]`` and the ids to the concatenated fields, as `FeatureArch` does."""
        others: list[Tensor] = []
        if self.of_histories is not None and self.histories is not None:
            first = len(self.tables.keys)
            rows = {
                key: lookup.each_row(self.of_histories, self.place + 1, number, first + number)
                for number, key in enumerate(self.of_histories.keys)
            }
            others.append(self.histories(rows))
        if self.dense_arch is not None:
            others.append(self.dense_arch(dense_features))
        fields = lookup(self.tables, self.place, others)
        return fields if self.domain_gate is None else self.domain_gate(fields)


class Ids(NamedTuple):
    """The ids of some features."""

    values: Tensor  # [V], feature by feature
    offsets: Tensor  # of each bag [F * B + 1]
    lengths: Tensor  # number of ids of each bag [F, B]
    weights: Tensor | None  # of the ids [V], of weighted tables

    def first(self, num_features: int) -> "Ids":
        """Those of the first features; the values of the others stay behind them."""
        lengths = self.lengths[:num_features]
        return Ids(self.values, self.offsets[: num_features * lengths.shape[1] + 1], lengths, self.weights)

    def of(self, feature: int) -> "Ids":
        """Those of one feature, each in a bag of its own."""
        batch = self.lengths.shape[1]
        first, last = self.offsets[feature * batch], self.offsets[(feature + 1) * batch]
        start, count = cast(int, first.item()), cast(int, (last - first).item())
        torch._check(start >= 0)
        torch._check(count >= 0)
        torch._check(start + count <= self.values.shape[0])
        values = self.values.narrow(0, start, count)
        return Ids(values, torch.arange(count + 1), torch.ones(1, count, dtype=torch.int64), None)


class Lookup:
    """What a model passes on from its argument to its features: the ids of a batch, and the bytes of all tables."""

    def __init__(self, ids: Ids, rows: list[Tensor]) -> None:
        self.ids, self.rows = ids, rows

    def __call__(self, tables: TableRows, place: int, others: list[Tensor]) -> Tensor:
        """Returns the concatenated fields of the tables that are at ``place``, and other fields after them."""
        return torch.cat(tables(self.rows[place], self.ids.first(len(tables.keys))) + others, dim=1)

    def each_row(self, tables: TableRows, place: int, number: int, feature: int) -> tuple[Tensor, Tensor]:
        """Returns the rows ``[V, D]`` of the tables' feature ``number``, one for each id, and ``lengths [B]``.

        Args:
            tables: tables that are at ``place``.
            place: of the bytes of the tables.
            number: place of the feature in the tables.
            feature: place of the feature among all ids.
        """
        (rows,) = tables(self.rows[place], self.ids.of(feature), [number])
        return rows, self.ids.lengths[feature]
