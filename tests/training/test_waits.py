"""What a step costs beyond bare TorchRec's: one collective, and one wait of the host, after the dense backward pass."""

import collections
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist

import torchrec_mtl
from tests import processes
from tests.support import TASKS, train_model
from tests.training.test_pipelines import PLANS, Batches
from torchrec_mtl.training.config import TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.loop import TrainingLoop
from torchrec_mtl.training.monitor import Monitor
from torchrec_mtl.training.process_group import process_group

CPU = torch.device("cpu")
READS = ("item", "tolist", "cpu", "numpy", "__float__", "__bool__", "__int__", "__index__")  # of a tensor, by the host
OURS = str(Path(torchrec_mtl.__file__).parent)
BARE = {"base": TrainPipelineBase, "sparse_dist": TrainPipelineSparseDist}


def reader() -> str:
    """The function of this library that reads a tensor; nothing if TorchRec does."""
    frame = sys._getframe(2)
    while "/torch/" in frame.f_code.co_filename:
        frame = frame.f_back
    return frame.f_code.co_name if frame.f_code.co_filename.startswith(OURS) else ""


def collectives(take) -> collections.Counter:
    with profile(activities=[ProfilerActivity.CPU]) as found:
        take()
    return collections.Counter(
        {event.key: event.count for event in found.key_averages() if event.key.startswith("c10d::")}
    )


def costs(folder: Path) -> None:
    for plan, (table, tables) in PLANS.items():
        for pipeline, bare_pipeline in BARE.items():
            config = TrainingConfig(batch_size=16, table=table, tables=tables, pipeline=pipeline)
            model, optimizer = distribute(train_model("shared_bottom", embedding_dims=(4, 8, 4, 8)), config, CPU)
            bare, batches = bare_pipeline(model, optimizer, CPU), iter(Batches(9, 0))
            for _ in range(3):
                bare.progress(batches)
            of_bare = collectives(partial(bare.progress, batches))

            model, optimizer = distribute(train_model("shared_bottom", embedding_dims=(4, 8, 4, 8)), config, CPU)
            arguments = (Batches(9, 0), (), TASKS, config, CPU, folder / f"{plan}-{pipeline}", Monitor(None))
            loop = TrainingLoop(model, optimizer, *arguments)
            for _ in range(3):
                loop.take_step()
            more = collectives(loop.take_step)
            more.subtract(of_bare)
            assert {key: n for key, n in more.items() if n} == {"c10d::allreduce_": 1}, (plan, pipeline)
            assert reads(loop) == ["backward: tolist"], (plan, pipeline)


def reads(loop: TrainingLoop) -> list[str]:
    """The reads of a step, in order."""
    found = []

    def noting(name, function):
        def read(tensor, *args, **options):
            if name_of_reader := reader():
                found.append(f"{name_of_reader}: {name}")
            return function(tensor, *args, **options)

        return read

    with pytest.MonkeyPatch.context() as patch:
        for name in READS:
            patch.setattr(torch.Tensor, name, noting(name, getattr(torch.Tensor, name)))
        loop.take_step()
    return found


@pytest.mark.slow
def test_a_step_waits_once_and_sends_one_message_more_than_bare_torchrec(tmp_path):
    """On two ranks, as one has nobody to agree with."""
    processes.run(costs, 2, tmp_path)


def test_the_decision_comes_after_the_dense_backward_pass_and_before_the_tables(monkeypatch, tmp_path):
    order = []
    config = TrainingConfig(batch_size=8)
    with process_group(CPU):
        model, optimizer = distribute(train_model("mmoe"), config, CPU)
        loop = TrainingLoop(model, optimizer, Batches(2, 0), (), TASKS, config, CPU, tmp_path, Monitor(None))
        step = loop.step
        table = next(each for each in model.state_dict().values() if hasattr(each, "local_shards"))
        table = table.local_shards()[0].tensor
        before, opened = table.clone(), step.gate.open

        def noted():
            order.extend(p.grad is not None for p in step.before_gate)
            order.append(torch.equal(table, before))
            opened()
            order.append(not torch.equal(table, before))

        monkeypatch.setattr(step.gate, "open", noted)
        loop.take_step()
        loop.close()
    assert len(order) > 2
    assert all(order)
