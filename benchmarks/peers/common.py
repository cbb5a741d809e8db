"""What the libraries' programs share, with torch and numpy alone: rows, their order, sizes, one training loop.

A program trains every model with every setting and seed, and leaves the test rows' scores::

    python <library>.py DATA_FOLDER SCORES_FOLDER
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SETTINGS = ("like for like", "library default")
MODELS = ("shared_bottom", "mmoe")
SEEDS = (0, 1, 2)
BATCH_SIZE, EMBEDDING_DIM, LEARNING_RATE = 512, 8, 1e-3
NUM_EXPERTS, BOTTOM_SIZES, TOWER_SIZES = 4, (128, 64), (32,)
TABLE_STD = 0.01  # where initialisation is alike


@dataclass(frozen=True)
class Data:
    """Ids int64 ``[N, fields]``, labels float32 ``[N, T]``, and the fields' numbers of ids."""

    train_ids: Tensor
    train_labels: Tensor
    test_ids: Tensor
    sizes: list[int]

    @property
    def num_tasks(self) -> int:
        return self.train_labels.shape[1]

    def batches(self, seed: int) -> Iterator[Tensor]:
        """One epoch of rows, in the order of `torchrec_mtl.data.BatchLoader`."""
        order = torch.from_numpy(np.random.default_rng([seed, 0]).permutation(len(self.train_ids)))
        yield from order[: len(order) // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE)


def draw_alike(model: nn.Module) -> None:
    """Initial values that any library can have: small normal tables, linear layers as torch draws them."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=TABLE_STD)
        elif isinstance(module, nn.Linear):
            module.reset_parameters()


def train_alike(model: nn.Module, predict: Callable[[Tensor], Tensor], data: Data, seed: int) -> None:
    """Adam on everything; the sum over tasks of mean cross entropies of probabilities ``predict(ids) [B, T]``."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for rows in data.batches(seed):
        loss = F.binary_cross_entropy(predict(data.train_ids[rows]), data.train_labels[rows]) * data.num_tasks
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main(train: Callable[[Data, str, bool, int], Callable[[Tensor], Tensor]]) -> None:
    """``train(data, model, alike, seed)`` returns what gives scores ``[B, T]`` for ids ``[B, fields]``."""
    torch.set_num_threads(1)
    folder, scores = map(Path, sys.argv[1:])
    arrays = np.load(folder / "rows.npz")
    data = Data(
        *(torch.from_numpy(arrays[name]) for name in ("train_ids", "train_labels", "test_ids")), list(arrays["sizes"])
    )
    for model in MODELS:
        for setting in SETTINGS:
            for seed in SEEDS:
                torch.manual_seed(seed)
                predict = train(data, model, setting == "like for like", seed)
                with torch.no_grad():
                    np.save(scores / f"{model},{setting},{seed}.npy", predict(data.test_ids).numpy())
