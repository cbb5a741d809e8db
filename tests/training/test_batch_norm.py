"""Batch normalisation on several ranks is that of one, and a run with it goes on bit for bit."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torchrec import EmbeddingBagCollection

from tests import processes
from tests.jobs import funnel
from tests.support import train_model
from tests.training import ranks
from tests.training.test_distributed import equals_unsharded
from torchrec_mtl import MultiTaskTrain
from torchrec_mtl.losses import CalibratedLoss
from torchrec_mtl.models import AITM
from torchrec_mtl.modules import FeatureArch
from torchrec_mtl.training.config import OptimizerConfig, TableConfig, TrainingConfig
from torchrec_mtl.training.process_group import set_seed

CONFIG = TrainingConfig(
    batch_size=32,
    max_epochs=2,
    evaluations_per_epoch=2,
    optimizer=OptimizerConfig(0.01),
    table=TableConfig("adam", 0.01),
)
# A bias that all rows have has no gradient before a normalisation, and Adam takes a whole step of what rounding leaves.
HARDLY_ADAM = TrainingConfig(optimizer=OptimizerConfig(1e-6), table=TableConfig("sgd", 0.05))
STEPS_OF_AN_EPOCH = 11


def build(config: TrainingConfig) -> nn.Module:
    set_seed(config.seed)
    collection = EmbeddingBagCollection(tables=funnel.SCHEMA.embedding_configs(8), device=torch.device("meta"))
    features = FeatureArch(collection, dense_in_features=1)
    model = AITM(features, funnel.SCHEMA.tasks, tower_layer_sizes=(8, 6), normalization="batch")
    return MultiTaskTrain(model, CalibratedLoss(funnel.SCHEMA.tasks))


def _statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer for name, buffer in model.named_buffers() if "running" in name}


def _train(data: Path, folder: Path) -> None:
    _, whole = ranks.train(CONFIG, data, folder / "whole", make=build)
    ranks.train(CONFIG, data, folder / "parts", stop_after=8, make=build)
    _, parts = ranks.train(CONFIG, data, folder / "parts", make=build)
    expected, found = _statistics(whole), _statistics(parts)
    assert len(found) == 2 * (3 * 2 + 2)
    for name, statistic in found.items():
        assert torch.equal(statistic, expected[name]), name
        of_ranks = [torch.empty_like(statistic) for _ in range(dist.get_world_size())]
        dist.all_gather(of_ranks, statistic)
        assert all(torch.equal(other, statistic) for other in of_ranks), name


@pytest.mark.slow
def test_two_ranks_are_one_and_a_run_goes_on_bit_for_bit(tmp_path):
    """The last step of an epoch has one row, and of two ranks the second none."""
    data = funnel.prepare(tmp_path / "data", train=321, valid=101)
    for world_size in (1, 2):
        processes.run(_train, world_size, data, tmp_path / str(world_size))
        whole, parts = (ranks.history(tmp_path / str(world_size) / kind) for kind in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        for key, value in whole.items():
            assert parts[key] == pytest.approx(value, abs=1e-12, rel=0, nan_ok=True), key
    one, two = (ranks.history(tmp_path / str(world_size) / "whole") for world_size in (1, 2))
    first = [{key: value for key, value in run.items() if key[0] <= STEPS_OF_AN_EPOCH} for run in (one, two)]
    assert {key[0] for key in first[0]} == {6, STEPS_OF_AN_EPOCH}
    ranks.check_alike(*first)


def _sharded(folder: Path) -> None:
    torch.manual_seed(0)
    options = {"embedding_dims": (4, 8, 4, 4), "normalization": "batch"}
    equals_unsharded(lambda: train_model("aitm", **options), HARDLY_ADAM, 5, folder)


@pytest.mark.slow
def test_gradients_on_two_ranks_are_those_of_the_whole_batch(tmp_path):
    processes.run(_sharded, 2, tmp_path)
