"""Embedding tables as bytes and one lookup, for a graph without TorchRec's modules."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection
from torchrec.inference.modules import quantize_inference_model
from torchrec.modules.embedding_configs import PoolingType
from torchrec.quant.embedding_modules import quant_prep_customize_row_alignment

from torchrec_mtl.errors import InputError, check_choice
from torchrec_mtl.modules import FeatureArch

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

    def forward(self, rows: Tensor, values: Tensor, offsets: Tensor, lengths: Tensor, weights: Tensor | None) -> Tensor:
        """Returns the pooled embeddings ``[B, sum(D_f)]``, feature by feature.

        Args:
            rows: bytes of all tables.
            values: ids ``[V]``, feature by feature.
            offsets: offsets ``[F * B + 1]`` of each bag.
            lengths: number of ids of each bag ``[F, B]``.
            weights: weights of the ids ``[V]``, of weighted tables.
        """
        lookup = torch.ops.fbgemm.int_nbit_split_embedding_codegen_lookup_function
        pooled: Tensor = lookup(
            rows,
            self.empty,
            self.weights_placements,
            self.weights_offsets,
            self.weights_tys,
            self.D_offsets,
            self.total_dim,
            *self.largest,
            values,
            offsets,
            0,  # sums; means are made below, so that all tables are one lookup
            weights,
            output_dtype=0,
            row_alignment=self.alignment,
        )
        if not any(self.means):
            return pooled
        fields = pooled.split(self.dims, dim=1)
        counts = lengths.clamp(min=1).to(pooled.dtype)
        means = [x / counts[f, :, None] if self.means[f] else x for f, x in enumerate(fields)]
        return torch.cat(means, dim=1)


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


class GraphFeatures(nn.Module):
    """Stands in for a `FeatureArch`: takes ids as tensors, and rows as arguments.

    Args:
        arch: features of a trained model.
        table_type: type of the rows, see `TableRows`.
    """

    def __init__(self, arch: FeatureArch, table_type: str) -> None:
        super().__init__()
        self.tables = TableRows(arch.embedding_bag_collection, table_type)
        self.dense_arch = arch.dense_arch
        self.place = 0  # of its rows among those of all tables

    def forward(self, dense_features: Tensor, ids: "Ids") -> Tensor:
        """Maps ``[B, num_dense]`` and the ids to the concatenated fields, as `FeatureArch` does."""
        pooled = self.tables(ids.rows[self.place], ids.values, ids.offsets, ids.lengths, ids.weights)
        return pooled if self.dense_arch is None else torch.cat([pooled, self.dense_arch(dense_features)], dim=1)


class Ids:
    """What a model passes on from its argument to its features: the ids of a batch, and the rows of all tables."""

    def __init__(
        self, values: Tensor, offsets: Tensor, lengths: Tensor, weights: Tensor | None, rows: list[Tensor]
    ) -> None:
        self.values, self.offsets, self.lengths, self.weights, self.rows = values, offsets, lengths, weights, rows
