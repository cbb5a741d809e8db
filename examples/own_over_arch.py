"""Your over arch in our training: sharding, optimizers, early stopping and metrics work with any module.

python examples/own_over_arch.py
"""

import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from random_funnel import NUM_DENSE, TASKS, batches, tables
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor

from torchrec_mtl import MultiTaskTrain
from torchrec_mtl.data import MultiTaskBatch
from torchrec_mtl.losses import CrossEntropyLoss
from torchrec_mtl.modules import FeatureArch, MarginalFromConditional
from torchrec_mtl.training.config import OptimizerConfig, TableConfig, TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.evaluation import evaluate
from torchrec_mtl.training.loop import TrainingLoop
from torchrec_mtl.training.monitor import Monitor
from torchrec_mtl.training.process_group import default_device, process_group, set_seed


class YourModel(nn.Module):
    """Any ``model(dense_features, sparse_features) -> logits [B, T]``; this one multiplies the steps' probabilities."""

    def __init__(self, embedding_bag_collection: EmbeddingBagCollection) -> None:
        super().__init__()
        self.features = FeatureArch(embedding_bag_collection, dense_in_features=NUM_DENSE)
        self.over_arch = nn.Sequential(
            nn.Linear(self.features.out_features, 32),
            nn.ReLU(),
            nn.Linear(32, len(TASKS)),  # each step's logit, given the previous step
            MarginalFromConditional(TASKS),
        )

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        return self.over_arch(self.features(dense_features, sparse_features))


class Batches:
    """An epoch of batches on this rank, with the position from which to resume an interrupted run."""

    def __init__(self, num_batches: int, seed: int) -> None:
        self.num_batches, self.seed, self.epoch, self.step = num_batches, seed, 0, 0

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[MultiTaskBatch]:
        first, self.step = self.step, 0
        return islice(batches(self.num_batches, batch_size=512, seed=self.seed + self.epoch), first, None)

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.step = epoch, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.step = state["epoch"], state["step"]


def main() -> None:
    config = TrainingConfig(
        batch_size=512,
        max_epochs=2,
        optimizer=OptimizerConfig(learning_rate=1e-2),
        table=TableConfig("rowwise_adagrad", learning_rate=0.1),
    )
    device = default_device()
    with process_group(device), tempfile.TemporaryDirectory() as folder:
        set_seed(config.seed)
        ebc = EmbeddingBagCollection(tables=tables(embedding_dim=8), device=torch.device("meta"))
        model, optimizer = distribute(MultiTaskTrain(YourModel(ebc), CrossEntropyLoss(TASKS)), config, device)
        directory = Path(folder)
        TrainingLoop(
            model,
            optimizer,
            Batches(60, seed=0),
            Batches(10, seed=1000),
            TASKS,
            config,
            device,
            directory,
            Monitor(directory, model="yours"),
        ).run()
        for row in evaluate(model, Batches(10, seed=2000), TASKS, device).compute():
            if row["metric"].endswith("auc"):
                print(f"test {row['metric']} of {row['task']} over {row['space']}: {row['value']:.4f}")


if __name__ == "__main__":
    main()
