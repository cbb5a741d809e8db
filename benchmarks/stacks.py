"""A model trained by bare TorchRec and by our loop, side by side in one process group."""

import copy
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.datasets.utils import Batch
from torchrec.distributed import DistributedModelParallel, TrainPipelineBase
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import HardwareConfig, KernelConfig, TopologyFactory, TrainerConfig
from torchrec.models.dlrm import DLRM, DLRMTrain, SparseArch
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from benchmarks.record import ROOT
from torchrec_mtl import MultiTaskTrain, TaskChain, TaskForest
from torchrec_mtl.data import MultiTaskBatch
from torchrec_mtl.losses import CrossEntropyLoss
from torchrec_mtl.modules import FeatureArch
from torchrec_mtl.systems import SYSTEMS
from torchrec_mtl.training.config import OptimizerConfig, TableConfig, TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.loop import TrainingLoop
from torchrec_mtl.training.monitor import Monitor

CPU = torch.device("cpu")
LEARNING_RATE, TABLE_LEARNING_RATE = 1e-3, 0.05
NUM_BATCHES = 8
NO_RUN = ROOT / "build" / "bench-run"  # where checkpoints would go


class Subject(NamedTuple):
    """What both stacks train: a model with its loss for each, whose parameters have the same names."""

    bare: nn.Module
    ours: nn.Module
    batches: list[MultiTaskBatch]  # of this rank
    tasks: TaskForest


def _batches(size: int, num_rows: int, seed: int, num_fields: int, dense: int, tasks: int) -> list[MultiTaskBatch]:
    """Random batches of ``size`` rows, one id in each bag."""
    generator = torch.Generator().manual_seed(seed)
    names = [f"f{number}" for number in range(num_fields)]
    batches = []
    for _ in range(NUM_BATCHES):
        ids = torch.randint(num_rows, (num_fields * size,), generator=generator)
        sparse = KeyedJaggedTensor.from_lengths_sync(names, ids, torch.ones_like(ids, dtype=torch.int32))
        numbers = torch.randn(size, dense, generator=generator)
        labels = (torch.rand(size, tasks, generator=generator) < 0.25).float().cumprod(1)
        batches.append(MultiTaskBatch(numbers, sparse, labels))
    return batches


def _tables(num_fields: int, embedding_dim: int, num_rows: int) -> EmbeddingBagCollection:
    tables = [
        EmbeddingBagConfig(name=f"t_{name}", embedding_dim=embedding_dim, num_embeddings=num_rows, feature_names=[name])
        for name in (f"f{number}" for number in range(num_fields))
    ]
    return EmbeddingBagCollection(tables=tables, device=torch.device("meta"))


def dlrm(batch_size: int, num_rows: int, seed: int, num_fields: int = 26, dim: int = 32) -> Subject:
    """TorchRec's DLRM: 26 tables of 32, dense arch 512-256-32, over arch 512-512-1."""
    batches, tasks = _batches(batch_size, num_rows, seed, num_fields, dense=13, tasks=1), TaskChain(["click"])
    tables = (_tables(num_fields, dim, num_rows) for _ in range(2))
    bare, ours = (DLRM(each, 13, [512, 256, dim], [512, 512, 1], CPU) for each in tables)
    return Subject(DLRMTrain(bare), MultiTaskTrain(ours, CrossEntropyLoss(tasks)), batches, tasks)


class ByHand(nn.Module):
    """TorchRec's sparse arch, an over arch and a loss, put together as briefly as can be."""

    def __init__(self, tables: EmbeddingBagCollection, over_arch: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"features": SparseArch(tables), "over_arch": over_arch})
        self.loss = loss

    def forward(self, batch: Batch) -> Any:
        logits = self.model["over_arch"](self.model["features"](batch.sparse_features))
        loss = self.loss(logits, batch.labels, None)
        return loss, (loss.detach(), logits.detach(), batch.labels)


def library(system: str, batch_size: int, num_rows: int, seed: int, small: bool = False) -> Subject:
    """A system of `SYSTEMS` with its paper's sizes or those of tests, a funnel of three steps, 23 tables of 16."""
    record, tasks = SYSTEMS[system], TaskChain(["click", "cart", "purchase"])
    batches = _batches(batch_size, num_rows, seed, num_fields=23, dense=0, tasks=len(tasks))
    features = FeatureArch(_tables(23, 16, num_rows), dense_device=CPU)
    model = record.model(features, tasks, **(record.small if small else {}))
    bare = ByHand(_tables(23, 16, num_rows), copy.deepcopy(model.get_submodule("over_arch")), record.loss(tasks))
    return Subject(bare, MultiTaskTrain(model, record.loss(tasks)), batches, tasks)


class Bare:
    """TorchRec alone, as in its own examples, on the same batches again and again."""

    def __init__(self, subject: Subject) -> None:
        (tables,) = (module for module in subject.bare.modules() if isinstance(module, EmbeddingBagCollection))
        apply_optimizer_in_backward(RowWiseAdagrad, tables.parameters(), {"lr": TABLE_LEARNING_RATE, "eps": 1e-8})
        ranks = TrainerConfig(world_size=dist.get_world_size(), local_world_size=dist.get_world_size())
        table_wise = ParameterConstraints(sharding_types=["table_wise"])
        planner = EmbeddingShardingPlanner(
            TopologyFactory.create_topology(ranks, HardwareConfig(), KernelConfig(compute_device="cpu")),
            constraints={table.name: table_wise for table in tables.embedding_bag_configs()},
            storage_reservation=FixedPercentageStorageReservation(0.15),
        )
        self.model = DistributedModelParallel(subject.bare, device=CPU, plan=planner.collective_plan(subject.bare))
        dense = dict(in_backward_optimizer_filter(self.model.named_parameters()))
        adam = KeyedOptimizerWrapper(dense, partial(torch.optim.AdamW, lr=LEARNING_RATE, weight_decay=0.0, fused=True))
        optimizer = CombinedOptimizer([self.model.fused_optimizer, adam])
        self.pipeline: Any = TrainPipelineBase(self.model, optimizer, CPU)
        # DLRM's labels are [B]
        self.batches = cycle([Batch(b.dense_features, b.sparse_features, b.labels.squeeze(1)) for b in subject.batches])

    def take_step(self) -> None:
        """Takes one optimizer step."""
        self.pipeline.progress(self.batches)

    def mean_loss(self) -> float:
        """Takes a step and returns the mean loss over the rows of all ranks."""
        total = self.pipeline.progress(self.batches)[0].double()
        dist.all_reduce(total)
        return total.item() / dist.get_world_size()


class Endless:
    """The same batches again and again, as an epoch without an end."""

    def __init__(self, batches: Iterable[MultiTaskBatch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return 10**9

    def __iter__(self) -> Iterator[MultiTaskBatch]:
        while True:
            yield from self.batches

    def set_epoch(self, epoch: int) -> None:
        """There is one epoch."""


def our_loop(
    train_model: nn.Module, batches: Iterable[Any], tasks: TaskForest, config: TrainingConfig, device: torch.device
) -> TrainingLoop:
    """A training loop over the same batches again and again, without evaluations and checkpoints."""
    model, optimizer = distribute(train_model, config, device)
    endless, monitor = Endless(batches), Monitor(None)
    return TrainingLoop(model, optimizer, endless, [], tasks, config, device, NO_RUN, monitor, "", lambda: False)


def ours(subject: Subject, batch_size: int) -> TrainingLoop:
    """Our loop with the settings of `Bare`; ``batch_size`` is over all ranks."""
    tables = TableConfig(learning_rate=TABLE_LEARNING_RATE, sharding="table_wise")
    dense = OptimizerConfig(learning_rate=LEARNING_RATE)
    config = TrainingConfig(batch_size=batch_size, optimizer=dense, table=tables)
    return our_loop(subject.ours, subject.batches, subject.tasks, config, CPU)


def mean_loss(run: TrainingLoop) -> float:
    """Takes a step and returns the mean loss over the rows of all ranks."""
    run.take_step()
    loss_sum, num_rows = run.step.take_sums()
    return loss_sum / num_rows
