"""Builds the tables of a run's fields whose ids have no vocabulary."""

from collections.abc import Sequence

import torch
from torchrec import EmbeddingBagConfig

from torchrec_mtl.data import ANY_ID, Schema
from torchrec_mtl.errors import InputError, not_one_of
from torchrec_mtl.modules import ZeroCollisionEmbeddingBagCollection
from torchrec_mtl.training.config import ZchConfig


def check_any_ids(zch: ZchConfig, schema: Schema) -> dict[str, int]:
    """Returns the rows of each table whose ids have no vocabulary, by the field that owns it.

    Args:
        zch: settings of the run.
        schema: schema of the data, which names some such fields too.

    Raises:
        InputError: if the data have no such field, or it looks up the table of another.
    """
    fields = {field.name: field for field in schema.fields}
    for name in zch.fields:
        if name not in fields:
            raise InputError(not_one_of("`zch.fields`", name, schema.field_names))
        if (shared := fields[name].shares) is not None:
            raise InputError(f"`zch.fields` (={name!r}) must name {shared!r}, whose table this field looks up")
    return {
        owner.name: zch.num_rows_of.get(owner.name, owner.num_rows or zch.num_rows)
        for owner in schema.fields
        if owner.shares is None and (owner.name in zch.fields or owner.num_embeddings == ANY_ID)
    }


def build_any_ids(
    zch: ZchConfig, tables: Sequence[EmbeddingBagConfig], is_weighted: bool, seed: int
) -> ZeroCollisionEmbeddingBagCollection:
    """Builds ``tables`` on ``meta``, which give ids their rows as ``zch`` says."""
    how = {name: getattr(zch, name) for name in ("eviction", "interval", "buckets", "decay")}
    return ZeroCollisionEmbeddingBagCollection(
        list(tables), seed=seed, is_weighted=is_weighted, device=torch.device("meta"), **how
    )
