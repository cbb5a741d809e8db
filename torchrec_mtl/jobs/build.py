"""Builds the model of a run from its settings."""

import torch
from torch import nn
from torchrec import EmbeddingBagCollection

from torchrec_mtl.data import Schema, Split
from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.absent_classes import usable_base_rates
from torchrec_mtl.jobs.run_config import RunConfig
from torchrec_mtl.modules import FeatureArch
from torchrec_mtl.tasks import corrected_tasks
from torchrec_mtl.training import MultiTaskTrain


def build_model(config: RunConfig, schema: Schema, device: torch.device) -> MultiTaskTrain:
    """Builds the model and its loss, with tables for the data's fields that stay on ``meta`` until they are sharded.

    Raises:
        InputError: if an argument is out of its range, or the model or the loss does not support the data's tasks.
    """

    def init(table: torch.Tensor) -> None:
        nn.init.normal_(table, std=config.table_init)

    tables = schema.embedding_configs(config.embedding_dim)
    for table in tables:
        table.init_fn = table.init_fn or init
    embedding_bag_collection = EmbeddingBagCollection(
        tables=tables, device=torch.device("meta"), is_weighted=bool(schema.id_weight_columns)
    )
    features = FeatureArch(embedding_bag_collection, dense_in_features=len(schema.dense), dense_device=device)
    model = config.system.model(features, schema.tasks, **config.model_args)
    loss = config.loss(schema.tasks, **config.loss_args)
    if corrected_tasks(schema.tasks) and not hasattr(loss, "corrected"):
        rule = "must be one such as 'delayed' for data whose late labels are to be corrected: others take first labels"
        raise InputError(f"`loss` (={type(loss).__name__}) {rule} as they are")
    return MultiTaskTrain(model, loss.to(device))


def build_to_train(config: RunConfig, split: Split, device: torch.device) -> MultiTaskTrain:
    """Builds the model as `build_model` does; if it can, it predicts the split's base rates before it is trained.

    Raises:
        InputError: as `build_model` does.
    """
    built = build_model(config, split.schema, device)
    if hasattr(built.model, "start_from_base_rates"):
        built.model.start_from_base_rates(usable_base_rates(split.base_rates(), split.schema.tasks))
    return built
