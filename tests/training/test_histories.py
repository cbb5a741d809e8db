"""Runs with histories: the same on one rank and on several, gone on with, and in either pipeline."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchrec.distributed.embedding import ShardedEmbeddingCollection

from tests import processes
from tests.jobs import histories
from tests.training import ranks
from torchrec_mtl.data import BatchLoader, read_split
from torchrec_mtl.jobs.build import build_model
from torchrec_mtl.jobs.run_config import RunConfig
from torchrec_mtl.modules import HistoryConfig
from torchrec_mtl.systems import SYSTEMS
from torchrec_mtl.training.checkpoint import Checkpointer, checkpoints, read_changed_rows, save_changed_rows
from torchrec_mtl.training.config import OptimizerConfig, TableConfig, TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.process_group import process_group, set_seed

OPTIMIZERS = {"rowwise_adagrad": 0.05, "sparse_adam": 0.01, "adam": 0.01}


def make(config: TrainingConfig) -> nn.Module:
    set_seed(config.seed)
    of_histories = HistoryConfig({"last.items": "item"}, max_length=4, transformer_layers=1, num_heads=2)
    run = RunConfig(SYSTEMS["shared_bottom"], 8, histories=of_histories, training=config)
    return build_model(run, histories.SCHEMA, ranks.CPU)


def configure(table: str, **options: object) -> TrainingConfig:
    return TrainingConfig(
        batch_size=32,
        evaluations_per_epoch=2,
        optimizer=OptimizerConfig(0.01),
        table=TableConfig(table, OPTIMIZERS[table]),
        **options,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return histories.prepare(tmp_path_factory.mktemp("data") / "seen", train=321, valid=101)


def assert_equal(actual: nn.Module, expected: nn.Module) -> None:
    for name, value in expected.state_dict().items():
        other = actual.state_dict()[name]
        for one, two in (
            zip(other.local_shards(), value.local_shards(), strict=True)
            if hasattr(value, "local_shards")
            else [(other, value)]
        ):
            assert torch.equal(getattr(one, "tensor", one), getattr(two, "tensor", two)), name


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("table", OPTIMIZERS)
def test_a_run_goes_on_bit_for_bit(data, tmp_path, table):
    with process_group(ranks.CPU):
        _, whole = ranks.train(configure(table), data, tmp_path / "whole", make=make)
        result, _ = ranks.train(configure(table), data, tmp_path / "parts", stop_after=7, make=make)
        assert (result.stopped, result.step) == (True, 7)
        _, parts = ranks.train(configure(table), data, tmp_path / "parts", make=make)
        sharded = [m for m in whole.modules() if isinstance(m, ShardedEmbeddingCollection)]
        assert len(sharded) == (table != "adam")
        assert_equal(parts, whole)


@pytest.mark.usefixtures("kernel")
def test_either_pipeline_is_the_same_run(data, tmp_path):
    """Parts of steps included."""
    with process_group(ranks.CPU):
        both = [
            ranks.train(configure("sparse_adam", pipeline=name, micro_batches=2), data, tmp_path / name, make=make)[1]
            for name in ("base", "sparse_dist")
        ]
        assert_equal(*both)


def test_the_rows_of_histories_are_among_those_that_changed(data, tmp_path):
    with process_group(ranks.CPU) as group:
        model, optimizer = distribute(make(configure("rowwise_adagrad")), configure("rowwise_adagrad"), ranks.CPU)
        Checkpointer(tmp_path / "checkpoints", group).save(0, model, optimizer, {}, None)
        batch = next(iter(BatchLoader(read_split(data, "train"), 3)))
        optimizer.zero_grad()
        model(batch)[0].backward()
        save_changed_rows(model, tmp_path / "checkpoints" / "step_000000000", tmp_path / "changed")
        changed = read_changed_rows(tmp_path / "changed")
    names = {path.rpartition(".")[2]: rows for path, rows in changed.items()}
    assert names.keys() == {"t_user", "t_tags", "t_item"}
    of_batch = batch.sparse_features.to_dict()
    seen = [part[-4:] for part in of_batch["last.items"].values().split(of_batch["last.items"].lengths().tolist())]
    read = torch.cat([*seen, of_batch["item"].values(), of_batch["liked"].values()])
    assert names["t_item"].ids.tolist() == read.unique().tolist()
    assert names["t_item"].rows.shape == (len(read.unique()), 8)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # no batch was good
def test_a_batch_with_a_loss_that_is_not_finite_changes_nothing(data, tmp_path, monkeypatch):
    with process_group(ranks.CPU):
        config = configure("rowwise_adagrad", non_finite_loss="skip", max_consecutive_skips=100)

        def poisoned(config: TrainingConfig) -> nn.Module:
            model = make(config)
            model.register_forward_hook(lambda module, inputs, output: (output[0] * float("nan"), output[1]))
            return model

        ranks.train(config, data, tmp_path / "run", stop_after=1, make=make)
        before = ranks.contents(checkpoints(tmp_path / "run" / "checkpoints")[-1])
        ranks.train(config, data, tmp_path / "run", stop_after=4, make=poisoned)
        after = ranks.contents(checkpoints(tmp_path / "run" / "checkpoints")[-1])
        for name, value in before.items():
            assert value.equal(after[name]), name


def _on_some_ranks(data: Path, folder: Path, stop_after: int = 10**9) -> None:
    for table in ("rowwise_adagrad", "adam"):
        config = configure(table, tables={} if table == "adam" else {"t_item": {"sharding": "row_wise"}})
        ranks.train(config, data, folder / table, stop_after=stop_after, make=make)


@pytest.mark.slow
@pytest.mark.usefixtures("kernel")
def test_two_ranks_are_the_run_of_one_and_go_on_with_it(data, tmp_path):
    """The last batch has one row: one of the ranks has none, and still takes part."""
    processes.run(_on_some_ranks, 1, data, tmp_path / "one")
    processes.run(_on_some_ranks, 2, data, tmp_path / "two")
    processes.run(_on_some_ranks, 2, data, tmp_path / "both", 5)
    processes.run(_on_some_ranks, 1, data, tmp_path / "both")
    for table in ("rowwise_adagrad", "adam"):
        one = ranks.history(tmp_path / "one" / table)
        assert one
        for other in ("two", "both"):
            ranks.check_alike(ranks.history(tmp_path / other / table), one)
