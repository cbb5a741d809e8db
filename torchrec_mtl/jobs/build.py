"""Builds the model of a run from its settings."""

from typing import Any

import torch
from torch import nn
from torchrec import EmbeddingBagCollection

from torchrec_mtl.data import ANY_ID, Schema, Split, StreamedSplit
from torchrec_mtl.errors import InputError, not_one_of
from torchrec_mtl.jobs.absent_classes import usable_base_rates
from torchrec_mtl.jobs.build_histories import build_histories, check_histories
from torchrec_mtl.jobs.run_config import RunConfig
from torchrec_mtl.losses import FunnelAndValues
from torchrec_mtl.losses.values import loss_of_all
from torchrec_mtl.modules import FeatureArch, ZeroCollisionEmbeddingBagCollection, start_values
from torchrec_mtl.tasks import corrected_tasks
from torchrec_mtl.training import MultiTaskTrain
from torchrec_mtl.training.balancing import make_balancing
from torchrec_mtl.training.train_wrapper import reads_beyond_logits

MOST_SCENES = 100


def build_model(config: RunConfig, schema: Schema, device: torch.device) -> MultiTaskTrain:
    """Builds the model and its loss, with tables for the data's fields that stay on ``meta`` until they are sharded.

    Raises:
        InputError: if an argument is out of its range, the model or the loss does not support the data's tasks, or the
            loss reads groups and the data have none.
    """
    features = build_features(config, schema, device)
    model = config.system.model(features, schema.tasks, **config.model_args)
    loss = loss_of_all(config.loss, schema.tasks, **config.loss_args)
    if corrected_tasks(schema.tasks) and not hasattr(getattr(loss, "funnel", loss), "corrected"):
        rule = "must be one such as 'delayed' for data whose late labels are to be corrected: others take first labels"
        raise InputError(f"`loss` (={type(loss).__name__}) {rule} as they are")
    if schema.group is None and "groups" in reads_beyond_logits(loss):
        rule = "must be one that compares no rows, or the data must have a group column (`group` of the schema)"
        raise InputError(f"`loss` (={type(loss).__name__}) {rule}")
    training = config.training
    balancing = make_balancing(training.balancing, schema.tasks, training.balancing_args)
    return MultiTaskTrain(model, loss.to(device), None if balancing is None else balancing.to(device))


def build_features(config: RunConfig, schema: Schema, device: torch.device) -> FeatureArch:
    """Builds the tables of the fields with a vocabulary, of those without and of histories, on ``meta``.

    Raises:
        InputError: if ``zch.fields`` or ``histories.candidates`` names a field that the data do not have, or one that
            cannot be what it says; or if ``scene`` is wrong.
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
    of_histories = check_histories(config.histories, schema, num_rows)
    tables = schema.embedding_configs(config.embedding_dim, num_rows)
    for table, owner in zip(tables, owners, strict=True):
        table.init_fn = init if owner.init_std is None else table.init_fn  # which TorchRec never leaves empty
    of_owner = dict(zip([owner.name for owner in owners], tables, strict=True))
    plain = [table for name, table in of_owner.items() if name not in num_rows and name not in of_histories]
    collections: list[Any] = [EmbeddingBagCollection(tables=plain, **of_collections)] if plain else []
    if num_rows:
        of_ids = [of_owner[name] for name in of_owner if name in num_rows]
        how = {name: getattr(zch, name) for name in ("eviction", "interval", "buckets", "decay")}
        seed = config.training.seed
        collections.append(ZeroCollisionEmbeddingBagCollection(of_ids, seed=seed, **how, **of_collections))
    if not collections:
        raise InputError("`histories.candidates` must leave a field whose table no history looks up")
    if config.scene:
        num_scenes(config.scene, schema)
    return FeatureArch(
        collections[0],
        zero_collision=collections[1] if collections[1:] else None,
        histories=build_histories(config.histories, schema, [of_owner[name] for name in of_histories], device),
        dense_in_features=len(schema.dense),
        domain_fields=[config.scene] if config.scene_gate else [],
        dense_device=device,
    )


def num_scenes(scene: str, schema: Schema) -> int:
    """The number of ids of the field that tells scenes apart.

    Raises:
        InputError: if the data have no such field, a row has several of its ids, or there are more than `MOST_SCENES`.
    """
    fields = {field.name: field for field in schema.fields}
    if scene not in fields:
        raise InputError(not_one_of("`scene`", scene, fields))
    if fields[scene].multi_valued:
        raise InputError(f"`scene` (={scene!r}) must be a field with one id in a row")
    if fields[scene].num_embeddings > MOST_SCENES:
        rule = f"must be a field of at most {MOST_SCENES} ids, not {fields[scene].num_embeddings}"
        raise InputError(f"`scene` (={scene!r}) {rule}")
    return fields[scene].num_embeddings


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
