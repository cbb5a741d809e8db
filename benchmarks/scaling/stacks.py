"""A model trained by bare TorchRec and by our loop, in one process group."""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torchrec import EmbeddingBagCollection
from torchrec.distributed import DistributedModelParallel, TrainPipelineBase
from torchrec.distributed.model_parallel import get_default_sharders
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import HardwareConfig, KernelConfig, TopologyFactory, TrainerConfig
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from benchmarks.scaling.subjects import CPU, Subject
from torchrec_mtl.data import MultiTaskBatch
from torchrec_mtl.training.config import OptimizerConfig, TableConfig, TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.fit import Training
from torchrec_mtl.training.monitor import Monitor

LEARNING_RATE, TABLE_LEARNING_RATE = 1e-3, 0.05


class Stack(Protocol):
    """A way of training, with the model it trains."""

    model: DistributedModelParallel

    def take_step(self) -> None:
        """One optimizer step."""

    def loss(self) -> float:
        """That of all ranks' rows, in one step."""


class Bare:
    """TorchRec alone, as in its own examples.

    Args:
        subject: what it trains; this rank's batches are taken again and again.
    """

    def __init__(self, subject: Subject) -> None:
        train_model = subject.bare
        collections = [m for m in train_model.modules() if isinstance(m, EmbeddingBagCollection)]
        for collection in collections:
            options = {"lr": TABLE_LEARNING_RATE, "eps": 1e-8}
            apply_optimizer_in_backward(RowWiseAdagrad, collection.parameters(), options)
        names = [table.name for collection in collections for table in collection.embedding_bag_configs()]
        world_size = dist.get_world_size()
        planner = EmbeddingShardingPlanner(
            topology=TopologyFactory.create_topology(
                TrainerConfig(world_size=world_size, local_world_size=world_size),
                HardwareConfig(),
                KernelConfig(compute_device="cpu"),
            ),
            constraints={name: ParameterConstraints(sharding_types=["table_wise"]) for name in names},
            storage_reservation=FixedPercentageStorageReservation(0.15),
        )
        plan = planner.collective_plan(train_model, get_default_sharders(), dist.group.WORLD)
        self.model = DistributedModelParallel(train_model, device=CPU, plan=plan)
        dense = dict(in_backward_optimizer_filter(self.model.named_parameters()))
        adam = KeyedOptimizerWrapper(dense, partial(torch.optim.AdamW, lr=LEARNING_RATE, weight_decay=0.0, fused=True))
        optimizer = CombinedOptimizer([self.model.fused_optimizer, adam])
        self.pipeline: Any = TrainPipelineBase(self.model, optimizer, CPU)
        self.batches = cycle(subject.bare_batches)

    def take_step(self) -> None:
        """One optimizer step."""
        self.pipeline.progress(self.batches)

    def loss(self) -> float:
        """That of all ranks' rows, in one step."""
        loss, _, _ = self.pipeline.progress(self.batches)
        total = loss.double()
        dist.all_reduce(total)
        return total.item() / dist.get_world_size()


class Endless:
    """The same batches again and again, as an epoch that does not end."""

    def __init__(self, batches: Iterable[MultiTaskBatch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return 10**9

    def __iter__(self) -> Iterator[MultiTaskBatch]:
        while True:
            yield from self.batches

    def set_epoch(self, epoch: int) -> None:
        """All are alike."""

    def state_dict(self) -> dict[str, Any]:
        """Not asked for without checkpoints."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Likewise."""


class Ours:
    """The same model through `distribute` and the step of `fit`.

    Args:
        subject: what it trains; this rank's batches are taken again and again.
        batch_size: over all ranks.
        directory: where a run would leave its files.
    """

    def __init__(self, subject: Subject, batch_size: int, directory: Path) -> None:
        config = TrainingConfig(
            batch_size=batch_size,
            optimizer=OptimizerConfig(learning_rate=LEARNING_RATE),
            table=TableConfig(learning_rate=TABLE_LEARNING_RATE, sharding="table_wise"),
        )
        self.model, optimizer = distribute(subject.ours, config, CPU)
        batches, monitor = Endless(subject.batches), Monitor(None)
        self.training = Training(
            self.model, optimizer, batches, [], subject.tasks, config, CPU, directory, monitor, "", lambda: False
        )

    def take_step(self) -> None:
        """One optimizer step, with all that the loop does for one."""
        self.training.take_step()

    def loss(self) -> float:
        """That of all ranks' rows, in one step."""
        self.take_step()
        loss_sum, num_rows = self.training.step.take_sums()
        return loss_sum / num_rows
