"""Systems of the library on a simulated funnel: built alike, trained until validation is no better."""

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection

from benchmarks.simulated_funnels.funnels import Drawn
from torchrec_mtl import MultiTaskTrain
from torchrec_mtl.data import BatchLoader, MultiTaskBatch, Split
from torchrec_mtl.losses import LocalSpaceLoss, exit_depth
from torchrec_mtl.models import MultiTaskModel
from torchrec_mtl.modules import advance_schedules
from torchrec_mtl.systems import ESCM2_IPS, SHARED_BOTTOM, SYSTEMS, System
from torchrec_mtl.tasks import TaskForest

EMBEDDING_DIM, BATCH_SIZE, LEARNING_RATE = 8, 1024, 3e-3
MOST_STEPS, INTERVAL, PATIENCE = 300, 25, 4
SIZES = {
    "bottom_layer_sizes": (64,),
    "layer_sizes": (64, 32),
    "expert_layer_sizes": (64,),
    "relation_layer_sizes": (16,),
    "num_inducing_points": 16,
    "schedule": "run",
}
TOWERS_ALONE, TOWERS = (64, 32), (32,)  # where nothing is before them; where something is

NAMES = (
    *("single_task", "shared_bottom", "mmoe", "dbmtl", "esmm", "escm2_ips", "escm2_dr", "dcmt", "ddpo"),
    *("aitm", "bpcm", "tafe"),
)


class ClickedRowsLoss(nn.Module):
    """Cross entropy of each step over the rows that reach it: nothing is learned from the entire space."""

    def __init__(self, tasks: TaskForest) -> None:
        super().__init__()
        self.edges = tasks.edges

    def forward(
        self, logits: Tensor, labels: Tensor, weights: Tensor | None = None, *, conditional_logits: Tensor
    ) -> Tensor:
        """Maps labels and conditional logits, ``[B, T]`` each, to a scalar."""
        return exit_depth(conditional_logits, labels, self.edges, weights)


# ESMM's architecture, which ESCM2-IPS's is, on clicked rows; and TAFE's theorem 2.1, which weighs clicked rows.
CLICKED_ROWS = replace(ESCM2_IPS, name="esmm, clicked rows", loss=ClickedRowsLoss)
LOCAL_SPACE = replace(SHARED_BOTTOM, name="shared_bottom, local space", loss=LocalSpaceLoss)
CANDIDATES = {system.name: system for system in (*(SYSTEMS[name] for name in NAMES), CLICKED_ROWS, LOCAL_SPACE)}


def build(system: System, split: Split, embedding_dim: int, given: Mapping[str, object]) -> MultiTaskTrain:
    """The system with the sizes above, ``given`` in their place, and its loss; it starts from the base rates."""
    known = inspect.signature(system.model).parameters
    sizes = {name: value for name, value in SIZES.items() if name in known}
    towers = TOWERS if any(name.endswith("layer_sizes") for name in sizes) else TOWERS_ALONE
    arguments = {**sizes, "tower_layer_sizes": towers, **system.model_args, **given}
    arguments = {name: value for name, value in arguments.items() if name in known}
    tables = EmbeddingBagCollection(tables=split.schema.embedding_configs(embedding_dim=embedding_dim))
    model = system.model(tables, split.schema.tasks, **arguments)
    model.start_from_base_rates(split.base_rates())
    return MultiTaskTrain(model, system.loss(split.schema.tasks, **system.loss_args))


def logits_of(model: nn.Module, split: Split) -> Tensor:
    """Marginal logits of all rows, ``[N, T]``, in float64; leaves the model in training mode."""
    model.eval()
    with torch.no_grad():
        batches = BatchLoader(split, 8192)
        found = torch.cat([model(b.dense_features, b.sparse_features) for b in batches]).double()
    model.train()
    return found


def train(
    system: System,
    drawn: Drawn,
    seed: int,
    *,
    embedding_dim: int = EMBEDDING_DIM,
    most_steps: int = MOST_STEPS,
    **given: object,
) -> MultiTaskModel:
    """Trains, and returns the model with the weights of the least validation loss.

    That is the cross entropy of all tasks over all rows, whatever the loss trained with, measured every `INTERVAL`
    steps; training ends when it has not fallen `PATIENCE` times. ``given`` are arguments of the model.
    """
    torch.manual_seed(seed)
    valid = drawn.splits["valid"]
    trained = build(system, drawn.splits["train"], embedding_dim, given)
    optimizer = torch.optim.Adam(trained.parameters(), LEARNING_RATE)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, most_steps)
    labels = torch.from_numpy(np.array(valid.arrays["labels"])).double()
    best, kept, failed = float("inf"), copy.deepcopy(trained.state_dict()), 0
    for step, batch in zip(range(1, most_steps + 1), _batches(drawn.splits["train"], seed), strict=False):
        loss, _ = trained(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        advance_schedules(trained, most_steps)
        if step % INTERVAL:
            continue
        score = F.binary_cross_entropy_with_logits(logits_of(trained.model, valid), labels).item()
        if score < best:
            best, kept, failed = score, copy.deepcopy(trained.state_dict()), 0
        elif (failed := failed + 1) == PATIENCE:
            break
    trained.load_state_dict(kept)
    return trained.model


def _batches(split: Split, seed: int) -> Iterator[MultiTaskBatch]:
    """Epoch after epoch, each in another order."""
    loader = BatchLoader(split, BATCH_SIZE, shuffle=True, seed=seed)
    for epoch in count():
        loader.set_epoch(epoch)
        yield from loader
