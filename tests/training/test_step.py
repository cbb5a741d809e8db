"""What ranks agree on before they step."""

import pytest
import torch
import torch.distributed as dist

from tests import processes
from tests.support import batch, train_model
from torchrec_mtl.training.checkpoint import Checkpointer, checkpoints, load_weights
from torchrec_mtl.training.config import OptimizerConfig, TableConfig, TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.process_group import process_group
from torchrec_mtl.training.step import NonFiniteLossError, Step

CPU = torch.device("cpu")


def snapshot(model):
    state = model.state_dict()
    shards = {name: value.local_shards() if hasattr(value, "local_shards") else value for name, value in state.items()}
    return {
        name: [shard.tensor.clone() for shard in value] if isinstance(value, list) else [value.clone()]
        for name, value in shards.items()
    }


def same(first, second):
    return [name for name in first if all(torch.equal(a, b) for a, b in zip(first[name], second[name], strict=True))]


def take(step, rows):
    with step.micro_batch(0, 1):
        step.zero_grad()
        loss, _ = step(rows)
        loss.backward()
        step.step()


def one_rank_has_a_bad_batch(table_optimizer: str) -> None:
    """The second of two: neither steps, and both go on after it."""
    rank = dist.get_rank()
    torch.manual_seed(0)
    config = TrainingConfig(optimizer=OptimizerConfig(0.1), table=TableConfig(table_optimizer, 0.1))
    for mode in ("stop", "skip"):
        model, optimizer = distribute(train_model("mmoe"), config, CPU)
        step = Step(model, optimizer, dist.new_group(backend="gloo"), mode)
        good, bad = batch(8, seed=rank), batch(8, seed=9)
        if rank == 1:
            bad.dense_features[3] = float("inf")
        take(step, good)
        before = snapshot(model)
        if mode == "stop":
            with pytest.raises(NonFiniteLossError) as error:
                take(step, bad)
            assert error.value.finite == (rank == 0)
        else:
            take(step, bad)
            assert step.num_skipped == 1
        after = snapshot(model)
        assert same(before, after) == list(before)
        if mode == "skip":
            take(step, good)
            assert len(same(after, snapshot(model))) < len(after) / 2
            _, num_rows = step.take_sums()
            assert num_rows == 2 * 2 * 8


@pytest.mark.slow
def test_a_bad_batch_of_one_rank_is_left_out_by_all():
    for table_optimizer in ("sgd", "adam"):
        processes.run(one_rank_has_a_bad_batch, 2, table_optimizer)


def one_rank_is_told_to_stop() -> None:
    model, optimizer = distribute(train_model("mmoe"), TrainingConfig(table=TableConfig("sgd")), CPU)
    rank = dist.get_rank()
    step = Step(model, optimizer, dist.new_group(backend="gloo"), stop_requested=lambda: rank == 1)
    assert not step.stop
    take(step, batch(8, seed=rank))
    assert step.stop


@pytest.mark.slow
def test_a_stop_of_one_rank_is_one_of_all():
    processes.run(one_rank_is_told_to_stop, 2)


def test_gradients_are_scaled_down_to_the_norm_asked_for(tmp_path):
    """As by hand, from the gradients of the same batch."""
    with process_group(CPU):
        config = TrainingConfig(table=TableConfig("adam"))
        model, optimizer = distribute(train_model("mmoe"), config, CPU)
        group = dist.new_group(backend="gloo")
        Checkpointer(tmp_path, group).save(0, model, optimizer, {}, None)
        (saved,) = checkpoints(tmp_path)
        step = Step(model, optimizer, group, max_gradient_norm=0.01)
        take(step, batch(8))
        scaled = torch.cat([p.grad.flatten() for p in model.parameters()])
        model.zero_grad()
        reference = train_model("mmoe")
        load_weights(reference, saved)
        loss, _ = reference(batch(8))
        loss.backward()
    whole = torch.cat([p.grad.flatten() for p in reference.parameters()])
    assert whole.norm() > 0.1
    torch.testing.assert_close(scaled, whole * (0.01 / whole.norm()), rtol=1e-4, atol=1e-7)


def test_only_skips_one_after_the_other_stop_a_run():
    skipped = []
    with process_group(CPU):
        model, optimizer = distribute(train_model("mmoe"), TrainingConfig(table=TableConfig("sgd")), CPU)
        limits = {"max_consecutive_skips": 3, "on_skip": lambda error: skipped.append(error.num_consecutive)}
        step = Step(model, optimizer, dist.group.WORLD, "skip", **limits)
        good, bad = batch(8), batch(8, seed=9)
        bad.dense_features[3] = float("inf")
        for rows in (bad, bad, good, bad, bad):
            take(step, rows)
        with pytest.raises(NonFiniteLossError) as error:
            take(step, bad)
    assert (skipped, error.value.num_consecutive, step.num_skipped) == ([1, 2, 1, 2], 3, 5)
