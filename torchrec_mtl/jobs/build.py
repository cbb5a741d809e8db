"""Builds the model of a run from its settings."""

from typing import Any

import torch
from torch import nn
from torchrec import EmbeddingBagCollection

from torchrec_mtl.data import ANY_ID, Schema, Split, StreamedSplit
from torchrec_mtl.errors import InputError, not_one_of
from torchrec_mtl.jobs.absent_classes import usable_base_rates
from torchrec_mtl.jobs.run_config import RunConfig
from torchrec_mtl.losses import FunnelAndValues
from torchrec_mtl.losses.values import loss_of_all
from torchrec_mtl.modules import FeatureArch, ZeroCollisionEmbeddingBagCollection, start_values
from torchrec_mtl.tasks import corrected_tasks
from torchrec_mtl.training import MultiTaskTrain
from torchrec_mtl.training.balancing import make_balancing


def build_model(config: RunConfig, schema: Schema, device: torch.device) -> MultiTaskTrain:
    """Builds the model and its loss, with tables for the data's fields that stay on ``meta`` until they are sharded.

    Raises:
        InputError: if an argument is out of its range, or the model or the loss does not support the data's tasks.
    """
    features = build_features(config, schema, device)
    model = config.system.model(features, schema.tasks, **config.model_args)
    loss = loss_of_all(config.loss, schema.tasks, **config.loss_args)
    if corrected_tasks(schema.tasks) and not hasattr(getattr(loss, "funnel", loss), "corrected"):
        rule = "must be one such as 'delayed' for data whose late labels are to be corrected: others take first labels"
        raise InputError(f"`loss` (={type(loss).__name__}) {rule} as they are")
    training = config.training
    balancing = make_balancing(training.balancing, schema.tasks, training.balancing_args)
    return MultiTaskTrain(model, loss.to(device), None if balancing is None else balancing.to(device))


def build_features(config: RunConfig, schema: Schema, device: torch.device) -> FeatureArch:
    """Builds the tables of the fields with a vocabulary and of those without, on ``meta``.

    Raises:
        InputError: if ``zch.fields`` names a field that the data do not have.
    """

    def init(table: torch.Tensor) -> None:
        nn.init.normal_(table, std=config.table_init)

    zch, fields = config.zch, {field.name: field for field in schema.fields}
    of_collections: dict[str, Any] = {"device": torch.device("meta"), "is_weighted": bool(schema.id_weight_columns)}
    for name in zch.fields:
        if name not in fields:
            raise InputError(not_one_of("`zch.fields`", name, schema.field_names))
        if (shared := fields[name].shares) is not None:
            raise InputError(f"`zch.fields` (={name!r}) must name {shared!r}, whose table this field looks up")
    owners = [field for field in schema.fields if field.shares is None]
    num_rows = {
        owner.name: zch.num_rows_of.get(owner.name, owner.num_rows or zch.num_rows)
        for owner in owners
        if owner.name in zch.fields or owner.num_embeddings == ANY_ID
    }
    tables = schema.embedding_configs(config.embedding_dim, num_rows)
    for table, owner in zip(tables, owners, strict=True):
        table.init_fn = init if owner.init_std is None else table.init_fn  # which TorchRec never leaves empty
    plain = [table for table in tables if not set(table.feature_names) & set(num_rows)]
    collections: list[Any] = [EmbeddingBagCollection(tables=plain, **of_collections)] if plain else []
    if num_rows:
        of_ids = [table for table in tables if set(table.feature_names) & set(num_rows)]
        how = {name: getattr(zch, name) for name in ("eviction", "interval", "buckets", "decay")}
        seed = config.training.seed
        collections.append(ZeroCollisionEmbeddingBagCollection(of_ids, seed=seed, **how, **of_collections))
    return FeatureArch(
        collections[0],
        zero_collision=collections[1] if collections[1:] else None,
        dense_in_features=len(schema.dense),
        dense_device=device,
    )


def build_to_train(config: RunConfig, split: Split | StreamedSplit, device: torch.device) -> MultiTaskTrain:
    """Builds the model as `build_model` does; if it can, it predicts the split's base rates before it is trained.

    Values start from the mean and deviation of the split's labels.

    Raises:
        InputError: as `build_model` does.
    """
    built = build_model(config, split.schema, device)
    if hasattr(built.model, "start_from_base_rates"):
        built.model.start_from_base_rates(usable_base_rates(split.base_rates(), split.schema.tasks.funnel))
    if split.schema.tasks.values:
        statistics = split.value_statistics()
        start_values(built.model, statistics)
        assert isinstance(built.loss, FunnelAndValues)
        built.loss.start(statistics)
    return built
