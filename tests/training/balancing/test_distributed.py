"""Balanced training on two ranks is that on one, tables keep their fused update, and a resumed run is the same run."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist

from tests import processes
from tests.support import TASKS, batch, build, take
from tests.training.balancing.cases import make
from torchrec_mtl import MultiTaskTrain, losses
from torchrec_mtl.training.balancing import BALANCINGS
from torchrec_mtl.training.checkpoint import Checkpointer, checkpoints
from torchrec_mtl.training.config import OptimizerConfig, TableConfig, TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.process_group import process_group
from torchrec_mtl.training.step import Step

CPU = torch.device("cpu")
CONFIG = TrainingConfig(optimizer=OptimizerConfig(0.01), table=TableConfig("sgd", 0.1))
ROWS = {1: [range(12)], 2: [range(7), range(7, 12)]}  # of each rank: not the same number


def train_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MultiTaskTrain(build("shared_bottom"), losses.DependenceLoss(TASKS), make(name))


def take_step(step: Step, rows: object) -> None:
    with step.micro_batch(0, 1):
        step.zero_grad()
        loss, _ = step(rows)
        step.backward(loss)
        step.step()


def sharded(name: str) -> nn.Module:
    """After four steps under DistributedModelParallel, with rows divided unevenly and one of a rank padded."""
    model, optimizer = distribute(train_model(name), CONFIG, CPU)
    step = Step(model, optimizer, dist.group.WORLD)
    rows_of_rank = ROWS[dist.get_world_size()][dist.get_rank()]
    for seed in range(4):
        rows = take(batch(12, seed=seed, weighted=True), rows_of_rank)
        if dist.get_rank() == 1:
            rows = take(rows, [*range(len(rows_of_rank)), 0]).padded(1)
        rows.num_rows_of_all = 12
        take_step(step, rows)
    return model.module


def replicated(name: str) -> nn.Module:
    """After four steps of SGD under DistributedDataParallel, which wants as many rows on each rank."""
    model = nn.parallel.DistributedDataParallel(train_model(name))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    size = 12 // dist.get_world_size()
    for seed in range(4):
        optimizer.zero_grad()
        loss, _ = model(
            take(batch(12, seed=seed, weighted=True), range(size * dist.get_rank(), size * (dist.get_rank() + 1)))
        )
        loss.backward()
        optimizer.step()
    return model.module


def train_all(file: str) -> None:
    """Leaves the logits of twelve rows, and what the method keeps, for every method and either wrapper."""
    found = {}
    for name in BALANCINGS:
        for trained in (sharded, replicated):
            model, rows = trained(name).eval(), batch(12, seed=9)
            with torch.no_grad():
                logits = model.model(rows.dense_features, rows.sparse_features)
            found[name, trained.__name__] = {"logits": logits, **model.balancer.state_dict()}
    if dist.get_rank() == 0:
        torch.save(found, file)


@pytest.mark.slow
def test_two_ranks_train_as_one(tmp_path):
    for world_size in (1, 2):
        processes.run(train_all, world_size, str(tmp_path / f"{world_size}.pt"))
    one, two = (torch.load(tmp_path / f"{world_size}.pt") for world_size in (1, 2))
    assert set(one) == {(name, wrapper) for name in BALANCINGS for wrapper in ("sharded", "replicated")}
    for key, states in one.items():
        for name, value in states.items():
            torch.testing.assert_close(
                two[key][name], value, rtol=1e-4, atol=2e-5, msg=lambda m, k=(key, name): f"{k} {m}"
            )
    different = {
        wrapper: {tuple(one[name, wrapper]["logits"][0].tolist()) for name in BALANCINGS} for _, wrapper in one
    }
    assert all(len(logits) == len(BALANCINGS) for logits in different.values())  # no method is another


@pytest.mark.parametrize("name", BALANCINGS)
def test_tables_are_updated_once_in_the_backward_pass(name):
    """With SGD that is fused with it: by the learning rate times the balanced gradient, before any optimizer step."""
    plain, rows = train_model(name), batch(12, weighted=True)
    with process_group(CPU):
        model, _ = distribute(train_model(name), CONFIG, CPU)
        tables = {key: value for key, value in model.state_dict().items() if "embedding_bags" in key}
        tables = {key: value.local_shards()[0].tensor for key, value in tables.items()}
        assert len(tables) == 4
        for key, value in tables.items():
            plain.get_parameter(key).data.copy_(value)
        plain(rows)[0].backward()
        model(rows)[0].backward()
        for key, value in tables.items():
            table = plain.get_parameter(key)
            assert table.grad.abs().max() > 1e-4
            torch.testing.assert_close(value, (table - 0.1 * table.grad).detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", BALANCINGS)
def test_a_pipeline_that_traces_the_model_trains_as_one_that_does_not(name):
    found = []
    with process_group(CPU):
        for pipeline in (TrainPipelineBase, TrainPipelineSparseDist):
            model, optimizer = distribute(train_model(name), CONFIG, CPU)
            takes, rows = pipeline(model, optimizer, CPU), iter([batch(12, seed=seed) for seed in range(5)])
            found.append([takes.progress(rows)[0] for _ in range(5)])
    assert found[0] == found[1]
    assert len(set(found[0])) == 5


def test_each_micro_batch_is_balanced_for_itself():
    """The gradients of a step are the mean of its parts', and the method has seen both."""
    parts = [batch(12, seed=seed) for seed in range(2)]
    alone, gradients = train_model("mgda"), []
    for rows in parts:
        alone.zero_grad()
        alone(rows)[0].backward()
        gradients.append({name: p.grad.clone() for name, p in alone.named_parameters()})
    with process_group(CPU):
        config = TrainingConfig(table=TableConfig("adam"))
        model, optimizer = distribute(train_model("mgda"), config, CPU)
        model.module.load_state_dict(alone.state_dict())
        step = Step(model, optimizer, dist.group.WORLD)
        for part, rows in enumerate(parts):
            with step.micro_batch(part, 2):
                step.zero_grad()
                step(rows)[0].backward()
        for name, parameter in model.module.named_parameters():
            mean = (gradients[0][name] + gradients[1][name]) / 2
            torch.testing.assert_close(parameter.grad, mean, rtol=1e-4, atol=1e-7)


def states(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for name, value in model.state_dict().items():
        found[name] = value.local_shards()[0].tensor if hasattr(value, "local_shards") else value
    return {name: value.clone() for name, value in found.items()}


@pytest.mark.parametrize("name", BALANCINGS)
def test_a_resumed_run_is_the_same_bit_for_bit(name, tmp_path):
    with process_group(CPU):
        runs = []
        for resumes in (False, True):
            model, optimizer = distribute(train_model(name), CONFIG, CPU)
            group = dist.new_group(backend="gloo")
            checkpointer, step = Checkpointer(tmp_path, group), Step(model, optimizer, group)
            if resumes:
                checkpointer.load(checkpoints(tmp_path)[0], model, optimizer)
            for seed in range(3 if resumes else 0, 6):
                if seed == 3 and not resumes:
                    checkpointer.save(3, model, optimizer, {}, None)
                take_step(step, batch(12, seed=seed, weighted=True))
            runs.append(states(model))
    whole, resumed = runs
    assert whole.keys() == resumed.keys()
    assert [key for key, value in whole.items() if not torch.equal(resumed[key], value)] == []
