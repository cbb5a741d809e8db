"""The same rows on one, two and four ranks are the same run."""

from pathlib import Path

import pytest

from tests import processes
from tests.jobs import funnel
from tests.training import ranks
from torchrec_mtl.training.config import OptimizerConfig, TableConfig, TrainingConfig

CONFIG = TrainingConfig(batch_size=32, max_epochs=2, evaluations_per_epoch=2, optimizer=OptimizerConfig(0.01))
TABLES = {
    "fused": TableConfig("sgd", 0.1),
    "replicated": TableConfig("adam", 0.01),
}


def _train(data: Path, folder: Path) -> None:
    for kind, table in TABLES.items():
        config = TrainingConfig(**{**vars(CONFIG), "table": table})
        ranks.train(config, data, folder / kind)


@pytest.mark.slow
def test_any_number_of_ranks_is_the_same_run(tmp_path):
    """The last step has one row: three of four ranks have none, and still take part."""
    data = funnel.prepare(tmp_path / "data", train=321, valid=101)
    for world_size in (1, 2, 4):
        processes.run(_train, world_size, data, tmp_path / str(world_size))
    for kind in TABLES:
        one, *others = (ranks.history(tmp_path / str(world_size) / kind) for world_size in (1, 2, 4))
        assert {key[0] for key in one} == {6, 11, 17, 22}
        for other in others:
            assert other.keys() == one.keys()
            for key, value in one.items():
                tolerance = 1e-6 if key[-1] == "auc" else 1e-5
                assert other[key] == pytest.approx(value, abs=tolerance, nan_ok=True), (kind, key)


def _micro(data: Path, folder: Path) -> None:
    for micro_batches in (1, 4):
        for kind, table in TABLES.items():
            config = TrainingConfig(**{**vars(CONFIG), "table": table, "micro_batches": micro_batches})
            ranks.train(config, data, folder / f"{kind}-{micro_batches}")


@pytest.mark.slow
def test_micro_batches_are_one_step_for_what_is_stepped_after_it(tmp_path):
    """Dense parameters and replicated tables take one step with the mean gradient; fused tables one a micro-batch."""
    data = funnel.prepare(tmp_path / "data", train=320, valid=101)
    processes.run(_micro, 2, data, tmp_path)
    whole, parts = (ranks.history(tmp_path / f"replicated-{n}") for n in (1, 4))
    assert whole.keys() == parts.keys()
    for key, value in whole.items():
        assert parts[key] == pytest.approx(value, abs=1e-5, nan_ok=True), key
    whole, parts = (ranks.history(tmp_path / f"fused-{n}") for n in (1, 4))
    losses = {key: value for key, value in whole.items() if key[-1] == "loss"}
    assert any(abs(parts[key] - value) > 1e-5 for key, value in losses.items())
    assert all(abs(parts[key] - value) < 0.05 for key, value in losses.items())
