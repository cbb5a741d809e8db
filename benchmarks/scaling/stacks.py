"""TorchRec's DLRM trained by bare TorchRec and by our loop, in one process group."""

from collections.abc import Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.datasets.utils import Batch
from torchrec.distributed import DistributedModelParallel, TrainPipelineBase
from torchrec.distributed.model_parallel import get_default_sharders
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import HardwareConfig, KernelConfig, TopologyFactory, TrainerConfig
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from torchrec_mtl import MultiTaskTrain, TaskChain
from torchrec_mtl.data import MultiTaskBatch
from torchrec_mtl.losses import CrossEntropyLoss
from torchrec_mtl.training.config import OptimizerConfig, TableConfig, TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.fit import Training
from torchrec_mtl.training.monitor import Monitor

CPU = torch.device("cpu")
NUM_TABLES, EMBEDDING_DIM, NUM_DENSE = 26, 32, 13
FEATURES = [f"f{number}" for number in range(NUM_TABLES)]
NUM_BATCHES = 8
LEARNING_RATE, TABLE_LEARNING_RATE = 1e-3, 0.05


def make_batches(batch_size: int, num_embeddings: int, seed: int) -> list[MultiTaskBatch]:
    """Random ones; each feature's bag holds one id."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(NUM_BATCHES):
        ids = torch.randint(num_embeddings, (NUM_TABLES * batch_size,), generator=generator)
        sparse = KeyedJaggedTensor.from_lengths_sync(FEATURES, ids, torch.ones(len(ids), dtype=torch.int32))
        dense = torch.randn(batch_size, NUM_DENSE, generator=generator)
        labels = (torch.rand(batch_size, 1, generator=generator) < 0.25).float()
        batches.append(MultiTaskBatch(dense, sparse, labels))
    return batches


def dlrm(num_embeddings: int) -> DLRM:
    """26 tables, dense arch 512-256-32, over arch 512-512-1."""
    tables = [
        EmbeddingBagConfig(
            name=f"t_{feature}", embedding_dim=EMBEDDING_DIM, num_embeddings=num_embeddings, feature_names=[feature]
        )
        for feature in FEATURES
    ]
    ebc = EmbeddingBagCollection(tables=tables, device=torch.device("meta"))
    return DLRM(ebc, NUM_DENSE, [512, 256, EMBEDDING_DIM], [512, 512, 1], dense_device=CPU)


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
        batches: this rank's, taken again and again.
        num_embeddings: rows of a table.
    """

    def __init__(self, batches: list[MultiTaskBatch], num_embeddings: int) -> None:
        train_model = DLRMTrain(dlrm(num_embeddings))
        tables = train_model.model.sparse_arch.parameters()
        apply_optimizer_in_backward(RowWiseAdagrad, tables, {"lr": TABLE_LEARNING_RATE, "eps": 1e-8})
        world_size = dist.get_world_size()
        planner = EmbeddingShardingPlanner(
            topology=TopologyFactory.create_topology(
                TrainerConfig(world_size=world_size, local_world_size=world_size),
                HardwareConfig(),
                KernelConfig(compute_device="cpu"),
            ),
            constraints={f"t_{name}": ParameterConstraints(sharding_types=["table_wise"]) for name in FEATURES},
            storage_reservation=FixedPercentageStorageReservation(0.15),
        )
        plan = planner.collective_plan(train_model, get_default_sharders(), dist.group.WORLD)
        self.model = DistributedModelParallel(train_model, device=CPU, plan=plan)
        dense = dict(in_backward_optimizer_filter(self.model.named_parameters()))
        adam = KeyedOptimizerWrapper(dense, partial(torch.optim.AdamW, lr=LEARNING_RATE, weight_decay=0.0))
        optimizer = CombinedOptimizer([self.model.fused_optimizer, adam])
        self.pipeline: Any = TrainPipelineBase(self.model, optimizer, CPU)
        self.batches = cycle(Batch(b.dense_features, b.sparse_features, b.labels.squeeze(1)) for b in batches)

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
    """The same few batches again and again, as an epoch that does not end."""

    def __init__(self, batches: list[MultiTaskBatch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return 10**9

    def __iter__(self) -> Iterator[MultiTaskBatch]:
        return cycle(self.batches)

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
        batches: this rank's, taken again and again.
        num_embeddings: rows of a table.
        batch_size: over all ranks.
        directory: where a run would leave its files.
    """

    def __init__(self, batches: list[MultiTaskBatch], num_embeddings: int, batch_size: int, directory: Path) -> None:
        config = TrainingConfig(
            batch_size=batch_size,
            optimizer=OptimizerConfig(learning_rate=LEARNING_RATE),
            table=TableConfig(learning_rate=TABLE_LEARNING_RATE, sharding="table_wise"),
        )
        tasks = TaskChain(["click"])
        train_model: nn.Module = MultiTaskTrain(dlrm(num_embeddings), CrossEntropyLoss())
        self.model, optimizer = distribute(train_model, config, CPU)
        monitor = Monitor(None)
        self.training = Training(
            self.model, optimizer, Endless(batches), [], tasks, config, CPU, directory, monitor, "", lambda: False
        )

    def take_step(self) -> None:
        """One optimizer step, with all that the loop does for one."""
        self.training.take_step()

    def loss(self) -> float:
        """That of all ranks' rows, in one step."""
        self.take_step()
        loss_sum, num_rows = self.training.step.take_sums()
        return loss_sum / num_rows
