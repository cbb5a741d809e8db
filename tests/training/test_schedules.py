"""The smooth step's schedule in the loop: a step of it is an optimizer step of the run."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from tests.jobs import funnel
from tests.support import batch, train_model
from tests.training import ranks
from torchrec_mtl.modules import DynamicSelector, SmoothStepSchedule
from torchrec_mtl.training.config import OptimizerConfig, TableConfig, TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.process_group import process_group
from torchrec_mtl.training.step import Step

CPU = torch.device("cpu")
CONFIG = TrainingConfig(
    batch_size=32, max_epochs=1, optimizer=OptimizerConfig(0.01), table=TableConfig("adam", learning_rate=0.01)
)


@pytest.fixture(autouse=True)
def _group():
    with process_group(CPU):
        yield


def selector_of(model):
    (selector,) = (m for m in model.modules() if isinstance(m, DynamicSelector))
    return selector


def take(step, batches):
    for part, rows in enumerate(batches):
        with step.micro_batch(part, len(batches)):
            step.zero_grad()
            loss, _ = step(rows)
            step.backward(loss)
            step.step()


def test_moves_once_for_all_micro_batches_and_not_for_a_step_that_is_skipped():
    model, optimizer = distribute(train_model("tafe"), CONFIG, CPU)
    step = Step(model, optimizer, dist.group.WORLD, non_finite_loss="skip")
    bad = batch(8)
    bad.dense_features[3] = float("inf")
    take(step, [batch(8, seed) for seed in range(3)])
    assert selector_of(model).step == 1
    take(step, [bad])
    assert (step.num_skipped, selector_of(model).step) == (1, 1)
    take(step, [bad, batch(8)])  # what is left of it is stepped
    assert (step.num_skipped, selector_of(model).step) == (2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_share_of_the_run_ends_with_it_resumed_or_not(tmp_path, micro_batches):
    """The only evaluation is the last step's, so its weights are what is left."""
    config = replace(CONFIG, micro_batches=micro_batches)
    data = funnel.prepare(tmp_path / "data", train=320, valid=101)
    result, model = ranks.train(config, data, tmp_path / "whole", schedule="run")
    whole = selector_of(model)
    assert whole.step == whole.num_steps == result.step == 10
    assert whole.gamma().item() == SmoothStepSchedule().end
    for stop_after, taken in ((4 * micro_batches, 4), (10**9, 10)):
        result, model = ranks.train(config, data, tmp_path / "resumed", stop_after, schedule="run")
        assert selector_of(model).step == result.step == taken
    for name, value in whole.state_dict().items():
        assert torch.equal(selector_of(model).state_dict()[name], value), name
