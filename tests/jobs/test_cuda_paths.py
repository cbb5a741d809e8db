"""What the jobs do on CUDA and not on a CPU, walked on a GPU that is the CPU."""

import ast
import json
from pathlib import Path
from types import SimpleNamespace

import torch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

import torchrec_mtl
from tests.fake_cuda import CPU, CUDA, fake_cuda
from tests.jobs import funnel
from tests.jobs.daily import shop
from tests.jobs.daily import test_days as daily
from torchrec_mtl.__main__ import main
from torchrec_mtl.jobs import single_run
from torchrec_mtl.jobs.compare import efficiency
from torchrec_mtl.jobs.daily import one_day
from torchrec_mtl.training import averaging
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.loop import TrainingLoop
from torchrec_mtl.training.memory import device_memory
from torchrec_mtl.training.process_group import default_device

WALKED = {  # file: functions that ask for CUDA
    "jobs/compare/efficiency.py": {"_seconds"},
    "jobs/daily/one_day.py": {"_of_rank"},
    "jobs/single_run.py": {"train_model"},
    "metrics/ranks.py": {"__init__"},
    "training/averaging.py": {"_adds_up_as_it_may"},
    "training/checkpoint/random_state.py": {"random_state", "restore_random_state"},
    "training/memory.py": {"device_memory"},
    "training/pipeline.py": {"chosen_pipeline"},
    "training/process_group.py": {"default_device", "process_group"},
}
KNOWN = {  # they ask for the number of GPUs or their name, before any process has one
    "jobs/compare/workers.py": {"_context"},
    "jobs/compare/runs.py": {"provenance"},
}
OPTIONS = ["training.batch_size=64", "training.evaluations_per_epoch=2", "embedding_dim=8"]
OPTIONS += ["training.table.optimizer=rowwise_adagrad", "training.checkpoint.interval=2"]


def _asks(node: ast.AST) -> bool:
    if isinstance(node, ast.Compare | ast.IfExp):
        return any(isinstance(each, ast.Constant) and each.value in ("cuda", "nccl") for each in ast.walk(node))
    return isinstance(node, ast.Attribute) and node.attr == "is_available" and "cuda" in ast.dump(node)


def test_all_functions_that_ask_for_cuda_are_walked_here():
    root, found = Path(torchrec_mtl.__file__).parent, {}
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root).as_posix()
        if name.startswith("ops/"):  # kernels, which tests/ops and tests/gpu run
            continue
        for function in ast.walk(ast.parse(file.read_text())):
            if isinstance(function, ast.FunctionDef) and any(map(_asks, ast.walk(function))):
                found.setdefault(name, set()).add(function.name)
    assert found == WALKED | KNOWN


def _on_cpu(built, plan, config, device):
    """The plan was made for CUDA, whose kernels are not here."""
    assert device == CUDA
    assert plan.plan
    return distribute(built, config, CPU)


def _arguments(data, output, *more):
    folders = ["--dataset", str(data), "--output", str(output), "--name", "run"]
    return ["train", *folders, "--models", "shared_bottom", *OPTIONS, *more]


def _test_rows(output):
    rows = json.loads((output / "run" / "results.json").read_text())
    return repr([row for row in rows if row["split"] == "test"])  # NaN is no NaN's equal


def test_a_training_job_does_the_same(tmp_path, monkeypatch):
    """In TorchRec's pipeline for CUDA, with the test split measured after it; interrupted once, and gone on with."""
    data = funnel.prepare(tmp_path / "data", train=320, valid=101, test=101)
    assert main(_arguments(data, tmp_path / "cpu")) == 0
    monkeypatch.setattr(single_run, "distribute_as_planned", _on_cpu)
    take_step, interruptions = TrainingLoop.take_step, iter([KeyboardInterrupt])

    def interrupted(loop):
        assert isinstance(loop.pipeline, TrainPipelineSparseDist)
        if loop.result.step == 3 and (once := next(interruptions, None)):
            raise once
        take_step(loop)

    monkeypatch.setattr(TrainingLoop, "take_step", interrupted)
    with fake_cuda() as asked:
        assert default_device() == CUDA
        assert main(_arguments(data, tmp_path / "cuda")) != 0
        assert main(_arguments(data, tmp_path / "cuda")) == 0
    assert _test_rows(tmp_path / "cuda") == _test_rows(tmp_path / "cpu")
    needed = {"nccl", "set_device", "pin_memory", "record_stream", "Stream", "get_device_properties"}
    assert needed | {"get_rng_state", "set_rng_state"} <= set(asked)


def test_the_days_do_the_same(tmp_path, monkeypatch):
    table = shop.write_days(tmp_path, 2)
    argv = [daily.arguments(table, tmp_path / name, days="2026-11-01..2026-11-02") for name in ("cpu", "cuda")]
    assert main(argv[0]) == 0
    monkeypatch.setattr(one_day, "distribute", lambda built, config, device: distribute(built, config, CPU))
    with fake_cuda() as asked:
        assert main(argv[1]) == 0
    assert asked["pin_memory"]
    cpu, cuda = (tmp_path / name / "run" / "days.csv" for name in ("cpu", "cuda"))
    assert cpu.read_text() == cuda.read_text()


def test_many_gpus_add_up_by_their_own_collective(monkeypatch):
    """The same that two processes use on a CPU; more of these add up in their order."""
    monkeypatch.setattr(averaging.dist, "get_world_size", lambda: 8)
    on = {device: SimpleNamespace(device=device) for device in (CPU, CUDA)}
    assert averaging._adds_up_as_it_may(on[CUDA])
    assert not averaging._adds_up_as_it_may(on[CPU])


def test_a_gpus_memory_and_time_are_asked_for():
    with fake_cuda() as asked:
        assert device_memory(CUDA) == 2**37
        assert efficiency._seconds(lambda: None, CUDA, 1) >= 0
    assert asked["synchronize"] == 2
    assert device_memory(torch.device("cpu")) is None
