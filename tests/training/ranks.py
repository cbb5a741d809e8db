"""A run of `fit` on any number of ranks, for tests that compare them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
from torchrec import EmbeddingBagCollection

from tests.jobs import funnel
from torchrec_mtl import MultiTaskTrain
from torchrec_mtl.data import BatchLoader, read_split
from torchrec_mtl.losses import DependenceLoss
from torchrec_mtl.models import TAFE
from torchrec_mtl.modules import FeatureArch
from torchrec_mtl.modules.zero_collision import ZeroCollisionEmbeddingBagCollection
from torchrec_mtl.training.config import TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.loop import TrainingLoop, TrainingResult
from torchrec_mtl.training.monitor import Monitor
from torchrec_mtl.training.process_group import set_seed

CPU = torch.device("cpu")
ZERO_COLLISION_ROWS = {"t_user": 16, "t_item": 12}  # for 20 and 10 ids; one row of each of 4 buckets is shared


def build(config: TrainingConfig, zero_collision: Mapping[str, Any] | None = None, **arguments: object) -> nn.Module:
    """A TAFE without dropout, whose selector, adapters and towers all train; tables on ``meta``.

    With arguments ``zero_collision`` of tables for ids without a vocabulary, users and items have too few rows.
    """
    set_seed(config.seed)
    tables, meta, of_ids = funnel.SCHEMA.embedding_configs(8), torch.device("meta"), None
    if zero_collision is not None:
        few = [replace(table, num_embeddings=ZERO_COLLISION_ROWS[table.name]) for table in tables[:2]]
        of_ids = ZeroCollisionEmbeddingBagCollection(few, seed=config.seed, device=meta, **zero_collision)
        tables = tables[2:]
    small = {"num_layers": 2, "num_inducing_points": 4, "tower_layer_sizes": (4,), "schedule": (10.0, 0.05, 0.1)}
    collection = EmbeddingBagCollection(tables=tables, device=meta)
    features = FeatureArch(collection, zero_collision=of_ids, dense_in_features=1)
    model = TAFE(features, funnel.SCHEMA.tasks, **{**small, **arguments})
    return MultiTaskTrain(model, DependenceLoss(funnel.SCHEMA.tasks))


class StopAfter:
    """Asks for a stop from the ``steps``-th step on."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 1


def train(
    config: TrainingConfig,
    data: Path,
    directory: Path,
    stop_after: int = 10**9,
    make: Callable[..., nn.Module] = build,
    **arguments: object,
) -> tuple[TrainingResult, nn.Module]:
    """`fit` on this rank of what ``make`` builds; ``metrics.jsonl`` is left by the first."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    model, optimizer = distribute(make(config, **arguments), config, CPU)
    of_rank = {"rank": rank, "world_size": world_size}
    size = config.batch_size // (world_size * config.micro_batches)
    train_split = read_split(data, "train")
    train_batches = BatchLoader(train_split, size, shuffle=True, seed=config.seed, **of_rank)
    valid_batches = BatchLoader(read_split(data, "valid"), 16, **of_rank)
    monitor = Monitor(directory if rank == 0 else None)
    stop = StopAfter(stop_after)
    tasks = train_split.schema.tasks
    loop = TrainingLoop(
        model, optimizer, train_batches, valid_batches, tasks, config, CPU, directory, monitor, stop_requested=stop
    )
    result = loop.run()
    monitor.close()
    return result, model


def history(directory: Path) -> dict[tuple, float]:
    """What `train` left, by step, split, task, space and metric."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {tuple(row.get(k) for k in ("step", "split", "task", "space", "metric")): row["value"] for row in rows}


def check_alike(found: dict[tuple, float], expected: dict[tuple, float]) -> None:
    """Checks that two `history` are equal but for rounding, by which a pair of like logits may change places."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        tolerance = 2e-3 if "auc" in key[-1] else 1e-5
        assert found[key] == pytest.approx(value, abs=tolerance, nan_ok=True), key


def contents(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, whole, but those of the random state."""
    state: dict[str, object] = {}
    reader = dcp.FileSystemReader(checkpoint)
    _load_state_dict(state, storage_reader=reader, planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    return {name: tensor for name, tensor in flatten_state_dict(state)[0].items() if not name.startswith("random")}
