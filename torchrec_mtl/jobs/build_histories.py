"""Builds the tables of a run's histories and of the fields that share them."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torchrec import EmbeddingCollection, EmbeddingConfig
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from torchrec_mtl.data import Schema
from torchrec_mtl.errors import InputError, not_one_of
from torchrec_mtl.modules import HistoryArch, HistoryConfig


def check_histories(histories: HistoryConfig, schema: Schema, of_any_id: Collection[str]) -> list[str]:
    """Returns the fields that own the tables of the histories.

    Args:
        histories: settings of the run.
        schema: schema of the data.
        of_any_id: fields that own a table whose ids have no vocabulary.

    Raises:
        InputError: if a history or its candidate is not a field of the right kind, the two have different tables, or
            ids of the data have weights.
    """
    fields, owners = {field.name: field for field in schema.fields}, []
    if histories.candidates and schema.id_weight_columns:
        rule = f"must be empty for data whose ids have weights ({schema.id_weight_columns[0]!r}): histories have none"
        raise InputError(f"`histories.candidates` {rule}")
    for name, candidate in histories.candidates.items():
        for each, is_history in {name: True, candidate: False}.items():
            if each not in fields:
                raise InputError(not_one_of("`histories.candidates`", each, schema.field_names))
            if fields[each].multi_valued != is_history:
                rule = "a multi-valued field as a history" if is_history else "a field of one id as a candidate"
                raise InputError(f"`histories.candidates` (={each!r}) must have {rule}")
        owner = schema.owner(fields[name])
        if schema.owner(fields[candidate]) is not owner:
            rule = "must look up the table of its candidate: let one of the two fields share the other's"
            raise InputError(f"`histories.candidates` (={name!r}: {candidate!r}) {rule}")
        if owner.name in of_any_id:
            rule = "must have a vocabulary: a table that gives ids rows as they come has no history"
            raise InputError(f"`histories.candidates` (={name!r}: {candidate!r}) {rule}")
        owners.append(owner.name)
    return list(dict.fromkeys(owners))


def build_histories(
    histories: HistoryConfig, schema: Schema, tables: Sequence[EmbeddingBagConfig], device: torch.device
) -> HistoryArch | None:
    """Builds ``tables`` on ``meta``, and what reads them on ``device``; None if there are none.

    Raises:
        InputError: if the tables differ in dimension, or a number does not suit it.
    """
    if not tables:
        return None
    if len({table.embedding_dim for table in tables}) > 1:
        dims = {table.name: table.embedding_dim for table in tables}
        raise InputError(f"the tables of histories must have one `embedding_dim`, not {dims}")
    keys = {name for table in tables for name in table.feature_names} - histories.candidates.keys()
    averaged = [field.name for field in schema.fields if field.pooling == "mean" and field.name in keys]
    configs = [
        EmbeddingConfig(
            name=table.name,
            num_embeddings=table.num_embeddings,
            embedding_dim=table.embedding_dim,
            feature_names=table.feature_names,
            init_fn=table.init_fn,
        )
        for table in tables
    ]
    how: dict[str, Any] = {name: value for name, value in vars(histories).items() if name != "candidates"}
    return HistoryArch(
        EmbeddingCollection(tables=configs, device=torch.device("meta")),
        histories.candidates,
        averaged=averaged,
        dense_device=device,
        **how,
    )
