"""What a user's own package looks like: a model, a loss, a metric and a data set; nothing of ours is edited.

`write` puts it into a folder of the user's.
"""

from pathlib import Path

MODELS = '''
"""Shared tables, and a task's own."""

import copy

import torch
from torch import nn

from torchrec_mtl.modules import TaskTowers, as_features
from torchrec_mtl.systems import System


class SharedAndOwn(nn.Module):
    """Each task's tower reads tables that all share and some of its own.

    Args:
        features: a `FeatureArch`, or the tables alone; each task gets a copy besides.
        tasks: the tasks.
        tower_layer_sizes: hidden layers of each tower.
    """

    def __init__(self, features, tasks, *, tower_layer_sizes: tuple[int, ...] = (16,)) -> None:
        super().__init__()
        self.shared = as_features(features)
        self.own = nn.ModuleList(copy.deepcopy(self.shared) for _ in tasks)
        self.towers = TaskTowers(len(tasks), 2 * self.shared.out_features, tower_layer_sizes)

    def forward(self, dense_features, sparse_features):
        shared = self.shared(dense_features, sparse_features)
        own = [features(dense_features, sparse_features) for features in self.own]
        return self.towers([torch.cat([shared, of_task], dim=1) for of_task in own])


SHARED_AND_OWN = System("shared_and_own", "Shared and Own", SharedAndOwn)
'''

LOSSES = '''
"""Uncertainty weighting: sum_t exp(-s_t) BCE_t + s_t, s_t learnt (Kendall et al., CVPR 2018)."""

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits


class Uncertainty(nn.Module):
    """Weights that are learnt.

    Args:
        tasks: the tasks.
        start: of every ``s_t``.
    """

    def __init__(self, tasks, *, start: float = 0.0) -> None:
        super().__init__()
        self.log_variances = nn.Parameter(torch.full((len(tasks),), start))

    def forward(self, logits, labels, weights=None):
        terms = binary_cross_entropy_with_logits(logits, labels, weight=weights, reduction="none").mean(0)
        return (self.log_variances.neg().exp() * terms + self.log_variances).sum()
'''

METRICS = """
from sklearn.metrics import average_precision_score

from torchrec_mtl.metrics import Metric


def average_precision(logits, labels, weights):
    return float(average_precision_score(labels, logits, sample_weight=weights))


AVERAGE_PRECISION = Metric(average_precision, "average precision", better="higher", score="ranking")
"""

DATA = '''
"""A shop: a click leads to a like, to a purchase, to both or to neither."""

import numpy as np
import polars as pl

from torchrec_mtl.data import Field, Schema, build_once
from torchrec_mtl.jobs.datasets import DataSet
from torchrec_mtl.jobs.settings import Settings
from torchrec_mtl.tasks import Task, TaskForest

TASKS = TaskForest(Task("click"), Task("like", after="click"), Task("buy", after="click"))


def prepare(cache, sample, raw):
    def build(folder):
        rng = np.random.default_rng(0)
        for split, rows in {"train": 2000, "valid": 500, "test": 500}.items():
            item = rng.integers(0, 20, rows)
            likely = np.where(item < 10, 0.8, 0.3)[:, None]
            happened = rng.random((rows, 3)) < likely
            happened[:, 1:] &= happened[:, :1]
            columns = dict(zip(TASKS, happened.T.astype(int)))
            pl.DataFrame({"item": item, "user": rng.integers(0, 50, rows), **columns}).write_parquet(
                folder / f"{split}.parquet"
            )
        return Schema("shop", [Field("item", 20), Field("user", 50)], TASKS)

    return build_once(cache / "shop", build)


SHOP = DataSet(prepare, Settings({"embedding_dim": 8, "training.batch_size": 100, "training.evaluations_per_epoch": 2}))
'''


def write(folder: Path) -> None:
    """The package ``my_funnel``."""
    package = folder / "my_funnel"
    package.mkdir()
    for name, text in {"__init__": "", "models": MODELS, "losses": LOSSES, "metrics": METRICS, "data": DATA}.items():
        (package / f"{name}.py").write_text(text)
