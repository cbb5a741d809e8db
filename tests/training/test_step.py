"""What ranks agree on before they step."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests import processes
from tests.jobs import funnel
from tests.support import TASKS, batch, build, train_model
from tests.training import ranks
from torchrec_mtl import MultiTaskTrain
from torchrec_mtl.data import BatchLoader, read_split
from torchrec_mtl.errors import InputError
from torchrec_mtl.losses import CrossEntropyLoss
from torchrec_mtl.training.checkpoint import Checkpointer, checkpoints, load_weights
from torchrec_mtl.training.config import OptimizerConfig, TableConfig, TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.process_group import process_group
from torchrec_mtl.training.step import NonFiniteLossError, Step, _largest

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
        step.backward(loss)
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


PLANS = {
    "fused": (TableConfig("rowwise_adagrad", 0.05), {}),
    "replicated": (TableConfig("adam", 0.05), {}),
    "mixed": (
        TableConfig("adagrad", 0.05),
        {"t0": {"sharding": "row_wise"}, "t1": {"sharding": "data_parallel"}, "t3": {"optimizer": "adam"}},
    ),
}


class Steep(CrossEntropyLoss):
    """Has the value of cross-entropy, and for rows of weight 7 an infinite gradient: a square root at 0."""

    def forward(self, logits, labels, weights=None):
        loss = super().forward(logits, labels, weights)
        return loss + (logits - logits.detach()).sum().sqrt() if weights[0, 0] == 7 else loss


def rows_of(number: int, kind: str):
    """A batch of this rank; the last rank's is not as it should be."""
    rows = batch(8, seed=10 * number + dist.get_rank(), weighted=True)
    rows.weights[0, 0] = 1
    if dist.get_rank() == dist.get_world_size() - 1:
        if kind == "loss":
            rows.dense_features[3] = float("nan")
        if kind == "gradient":
            rows.weights[0, 0] = 7
    return rows


def taken(plan: str, steps: list[list[tuple[int, str]]]):
    """The step and the state after ``steps``: number and kind of the batch of each part; an absent one is not taken."""
    table, tables = PLANS[plan]
    config = TrainingConfig(optimizer=OptimizerConfig(0.1), table=table, tables=tables)
    torch.manual_seed(0)
    model, optimizer = distribute(MultiTaskTrain(build("mmoe"), Steep(TASKS)), config, CPU)
    step = Step(model, optimizer, dist.new_group(backend="gloo"), "skip")
    for parts in steps:
        for part, (number, kind) in enumerate(parts):
            with step.micro_batch(part, len(parts)):
                step.zero_grad()
                if kind != "absent":
                    loss, _ = step(rows_of(number, kind))
                    step.backward(loss)
                step.step()
    return step, {**snapshot(model), **{f"state of {n}": v for n, v in snapshot_of_optimizer(optimizer).items()}}


def snapshot_of_optimizer(optimizer):
    found = {}
    for name, states in optimizer.state_dict()["state"].items():
        for key, value in states.items():
            shards = value.local_shards() if hasattr(value, "local_shards") else None
            found[f"{name}/{key}"] = [value.clone()] if shards is None else [each.tensor.clone() for each in shards]
    return found


def assert_same(first, second, where) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if name not in same(first, second)] == [], where
    assert all(tensor.isfinite().all() for tensors in second.values() for tensor in tensors), where


def good(*numbers: int) -> list[tuple[int, str]]:
    return [(number, "good") for number in numbers]


def skipped_is_absent() -> None:
    """Of a step, or of its parts; the others add up in the same order, whichever comes last and is averaged."""
    pairs = {
        "first of a run": ([[(0, "bad")], good(1), good(2)], [good(1), good(2)]),
        "later": ([good(0), good(1), [(2, "bad")], good(3)], [good(0), good(1), good(3)]),
        "first part": ([[(0, "bad"), *good(1, 2)], good(3, 4, 5)], [[(0, "absent"), *good(1, 2)], good(3, 4, 5)]),
        "last part": ([[*good(1, 2), (0, "bad")], good(3, 4, 5)], [[(0, "absent"), *good(1, 2)], good(3, 4, 5)]),
        "all parts": ([good(1, 2), [(3, "bad"), (4, "bad")], good(5, 6)], [good(1, 2), good(5, 6)]),
    }
    for plan in PLANS:
        for where, (with_bad, without) in pairs.items():
            _, expected = taken(plan, without)
            for kind in ("loss", "gradient"):
                steps = [[(number, kind if each == "bad" else each) for number, each in parts] for parts in with_bad]
                step, found = taken(plan, steps)
                assert step.num_skipped == sum(each == kind for parts in steps for _, each in parts)
                assert_same(expected, found, (plan, where, kind))
        dense = {name: value for name, value in found.items() if "over_arch" in name}
        every = [None] * dist.get_world_size()
        dist.all_gather_object(every, dense)
        assert_same(every[0], every[-1], (plan, "replicas"))


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_with_a_skipped_batch_is_the_run_without_it_on_every_rank(world_size):
    """Bit for bit, if the loss of a rank is not finite, and if only its gradient is not."""
    processes.run(skipped_is_absent, world_size)


def ids_without_a_vocabulary(data: Path) -> None:
    """Their tables, in a collection of another kind, wait for the decision too."""
    config = TrainingConfig(batch_size=16)
    of_ids = {"interval": 1000, "buckets": 4}  # rows do not change hands
    model, optimizer = distribute(ranks.build(config, zero_collision=of_ids), config, CPU)
    step = Step(model, optimizer, dist.new_group(backend="gloo"), "skip")
    of_rank = {"rank": dist.get_rank(), "world_size": dist.get_world_size()}
    rows = next(iter(BatchLoader(read_split(data, "train"), 8, **of_rank)))
    name = "model.features.zero_collision._embedding_module.embedding_bags.t_user.weight"
    for value, is_same in ((0.0, False), (math.nan if dist.get_rank() else 0.0, True)):
        before = snapshot(model)
        rows.dense_features.fill_(value)
        take(step, rows)
        assert (name in same(before, snapshot(model))) == is_same
    assert step.num_skipped == 1


@pytest.mark.slow
def test_a_bad_batch_leaves_tables_for_ids_without_a_vocabulary_alone(tmp_path):
    processes.run(ids_without_a_vocabulary, 2, funnel.prepare(tmp_path / "data", train=100, valid=50, test=50))


def stops_before_any_update() -> None:
    for plan in PLANS:
        step, before = taken(plan, [good(0)])
        step.non_finite_loss = "stop"
        for kind in ("loss", "gradient"):
            with pytest.raises(NonFiniteLossError, match=f"^the {kind} is not finite$") as error:
                take(step, rows_of(1, kind))
            assert error.value.what == kind
            if kind == "loss":
                assert error.value.finite == (dist.get_rank() == 0)
            after = snapshot(step.model)
            assert same(after, before) == list(after), (plan, kind)
            step, before = taken(plan, [good(0)])  # a replica is left in the middle of its pass
            step.non_finite_loss = "stop"


@pytest.mark.slow
def test_nothing_is_updated_when_a_run_stops():
    processes.run(stops_before_any_update, 2)


def test_padding_without_the_rows_of_all_ranks_is_told():
    with process_group(CPU):
        model, optimizer = distribute(train_model("mmoe"), TrainingConfig(table=TableConfig("sgd")), CPU)
        step = Step(model, optimizer, dist.group.WORLD)
        with pytest.raises(InputError, match=r"`num_padded` \(=1\) must come with `num_rows_of_all`, on every rank"):
            step(batch(8).padded(1))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 17, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_gradient_that_is_not_finite_is_found_wherever_it_is(value, place, dtype):
    gradients = [torch.ones(3), torch.empty(0, 4), -torch.arange(65).to(dtype)]
    assert _largest(gradients) == 64
    gradients[2][place] = value
    assert not _largest(gradients).isfinite()


def test_no_gradient_is_finite():
    assert _largest([]) == 0
