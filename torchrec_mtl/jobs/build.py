"""Builds the model of a run from its settings."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig

from torchrec_mtl.data import Schema, Split, StreamedSplit
from torchrec_mtl.errors import InputError, not_one_of
from torchrec_mtl.jobs.absent_classes import usable_base_rates
from torchrec_mtl.jobs.build_any_ids import build_any_ids, check_any_ids
from torchrec_mtl.jobs.build_histories import build_histories, check_histories
from torchrec_mtl.jobs.run_config import RunConfig
from torchrec_mtl.losses import FunnelAndValues
from torchrec_mtl.losses.values import loss_of_all
from torchrec_mtl.modules import FeatureArch, start_values
from torchrec_mtl.tasks import corrected_tasks
from torchrec_mtl.training import MultiTaskTrain
from torchrec_mtl.training.balancing import make_balancing
from torchrec_mtl.training.train_wrapper import reads_beyond_logits

MOST_SCENES = 100


def build_model(config: RunConfig, schema: Schema, device: torch.device) -> MultiTaskTrain:
    """Builds the model and its loss, with tables for the data's fields that stay on ``meta`` until they are sharded.

    Raises:
        InputError: if an argument is out of its range, the model or the loss does not support the data's tasks, the
            loss reads groups and the data have none, or ``scene`` is not a field with few ids.
    """
    check_scene(config.scene, schema)
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
            cannot be what it says.
    """
    num_rows = check_any_ids(config.zch, schema)
    of_histories = check_histories(config.histories, schema, num_rows)
    tables = _tables(config, schema, num_rows)
    plain = [table for name, table in tables.items() if name not in num_rows and name not in of_histories]
    is_weighted = bool(schema.id_weight_columns)
    collection = EmbeddingBagCollection(plain, is_weighted, device=torch.device("meta")) if plain else None
    of_any_id = [tables[name] for name in tables if name in num_rows]
    any_ids = build_any_ids(config.zch, of_any_id, is_weighted, config.training.seed) if of_any_id else None
    first = any_ids if collection is None else collection
    if first is None:
        raise InputError("`histories.candidates` must leave a field whose table no history looks up")
    return FeatureArch(
        first,
        zero_collision=None if first is any_ids else any_ids,
        histories=build_histories(config.histories, schema, [tables[name] for name in of_histories], device),
        dense_in_features=len(schema.dense),
        domain_fields=[config.scene] if config.scene_gate else [],
        dense_device=device,
    )


def _tables(config: RunConfig, schema: Schema, num_rows: Mapping[str, int]) -> dict[str, EmbeddingBagConfig]:
    """The table of each field that owns one, by the field's name."""
    owners = [field for field in schema.fields if field.shares is None]
    tables = schema.embedding_configs(config.embedding_dim, dict(num_rows))
    for table, owner in zip(tables, owners, strict=True):
        if owner.init_std is None:  # which TorchRec never leaves empty
            table.init_fn = partial(nn.init.normal_, std=config.table_init)
    return dict(zip([owner.name for owner in owners], tables, strict=True))


def check_scene(scene: str, schema: Schema) -> None:
    """Checks the field that tells scenes apart, if there is one.

    Raises:
        InputError: if the data have no such field, a row has several of its ids, or there are more than `MOST_SCENES`.
    """
    fields = {field.name: field for field in schema.fields}
    if not scene:
        return
    if scene not in fields:
        raise InputError(not_one_of("`scene`", scene, fields))
    if fields[scene].multi_valued:
        raise InputError(f"`scene` (={scene!r}) must be a field with one id in a row")
    if fields[scene].num_embeddings > MOST_SCENES:
        rule = f"must be a field of at most {MOST_SCENES} ids, not {fields[scene].num_embeddings}"
        raise InputError(f"`scene` (={scene!r}) {rule}")


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
