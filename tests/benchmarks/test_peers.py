"""The same models in other libraries and in ours: failures, the check, and the arithmetic. Nothing is installed."""

import csv
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import record
from benchmarks.peers import __main__ as peers
from benchmarks.peers import common
from benchmarks.peers.worker import Library


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return peers.save_rows(str(tmp_path), "quick")[1]


def test_a_library_that_failed_is_asked_no_more_and_says_why(rows):
    with Library(rows, "no_such", Path(sys.executable), common.ADAM, "mmoe") as library:
        assert library.failure == "ModuleNotFoundError: No module named 'benchmarks.peers.no_such_models'"
        assert library.row == {"library": "no_such", "setting": common.ADAM, "model": "mmoe", "versions": ""}
        library.process.kill()
        assert library.ask("build") is None
        assert library.failure.startswith("ModuleNotFoundError")


def test_a_process_that_was_killed_is_a_failure_too(rows):
    with Library(rows, peers.OURS, Path(sys.executable), common.ADAM, "mmoe") as library:
        assert library.ask("build") > 0
        library.process.kill()
        assert library.ask("train", steps=2) is None
        assert library.failure == "its process ended with status -9"


def test_a_library_that_cannot_be_installed_has_a_row_that_says_why(monkeypatch):
    def refuse(name):
        raise OSError("no network")

    monkeypatch.setattr(peers, "python_with", refuse)
    rows = []
    assert peers.interpreters([peers.OURS, "fuxictr"], SimpleNamespace(add=rows.append)) == {
        peers.OURS: Path(sys.executable)
    }
    assert rows == [{"library": "fuxictr", "versions": "", "error": "not installed: no network"}]


class Answers:
    """A library in this process; what it does not answer is a failure."""

    def __init__(self, library, **answers):
        self.row, self.failure, self.answers = {"library": library, "model": "mmoe"}, "", answers

    def ask(self, do, **arguments):
        self.failure = self.failure or ("" if do in self.answers else "ValueError: no")
        return None if self.failure else self.answers[do]


def predicting(library, probabilities):
    return Answers(library, build=1, train=1.0, probabilities=probabilities.tolist())


def test_no_figures_where_predictions_differ():
    ours = np.random.default_rng(0).random((1000, 2))
    first = predicting(peers.OURS, ours)
    peers.check_alike([first, predicting("same", ours + 1e-5), Answers("failed")])
    with pytest.raises(SystemExit, match=r"error: mmoe: other's probabilities are 1.0e-03 from ours"):
        peers.check_alike([first, predicting("other", ours + 1e-3)])
    with pytest.raises(SystemExit, match="other's probabilities are nan"):
        peers.check_alike([first, predicting("other", ours * math.nan)])
    with pytest.raises(SystemExit, match="error: mmoe: ours failed: ValueError: no"):
        peers.check_alike([Answers(peers.OURS), first])


def test_speeds_are_by_cpu_time_and_beside_ours():
    memory = {"peak memory": 100.4, "memory after imports": 90.0}
    ours = Answers(peers.OURS, build=10, train=2.0, infer=1.0, memory=memory)
    slow = Answers("slow", build=11, train=3.0, infer=4.0, memory=memory)
    found = peers.measure_speed(common.WORKLOADS["speed"], [ours, slow, Answers("failed", build=12)], repeats=2)
    *measured, failed = found
    about = [(row["library"], row["parameters"], row["measure"]) for row in measured]
    measures = ["training", "inference", *memory]
    assert about == [(name, n, m) for name, n in ((peers.OURS, 10), ("slow", 11)) for m in measures]
    assert [row["median"] for row in measured[:4]] == [2.048, 4.096, 100, 90]  # 4 steps of 1,024 rows
    assert [row["ours_to_this"] for row in measured if "ours_to_this" in row] == [1, 1, 1.5, 4]
    assert failed == {"library": "failed", "model": "mmoe", "parameters": 12, "error": "ValueError: no"}


class Mixed(torch.nn.Module):
    """A table, a matrix and a bias, and the stacked matrices and biases of two experts."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = torch.nn.Embedding(1000, 8), torch.nn.Linear(500, 400)
        self.weights = torch.nn.Parameter(torch.ones(2, 300, 400))
        self.biases = torch.nn.Parameter(torch.ones(2, 300))


def test_initial_values_are_drawn_alike_however_parameters_are_arranged():
    model = Mixed()
    common.initialize(model, fill=False)
    assert model.table.weight.std().item() == pytest.approx(common.TABLE_STD, rel=0.05)
    assert model.linear.weight.std().item() == pytest.approx((2 / 500) ** 0.5, rel=0.05)
    assert model.weights.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.05)
    assert not model.biases.any()
    assert not model.linear.bias.any()


@pytest.mark.parametrize("setting", [common.LIKE_FOR_LIKE, common.ADAM])
def test_training_alike_is_on_the_sum_of_the_tasks_losses(setting):
    torch.manual_seed(0)
    ids, labels = torch.randint(9, (64, 1)), torch.randint(2, (64, 2)).float()
    work = common.Workload((0.5, 0.5), (9,), 64, 64, 32, 2, [2], [2])
    table = torch.nn.Embedding(9, 2)
    linear = torch.nn.Linear(2, 2)
    module = torch.nn.ModuleList([table, linear])

    def probabilities(ids):
        return linear(table(ids[:, 0])).sigmoid()

    _, train, _ = common.alike(module, probabilities, work, setting, fill=False)
    own, weight, bias = (torch.nn.Parameter(p.detach().clone()) for p in module.parameters())
    optimizers = [
        torch.optim.Adam([weight, bias], lr=common.LEARNING_RATE),
        torch.optim.Adam([own], lr=common.LEARNING_RATE)
        if setting == common.ADAM
        else torch.optim.Adagrad([own], lr=common.TABLE_LEARNING_RATE, eps=common.TABLE_EPS),
    ]
    train(ids, labels)
    for rows in (slice(32), slice(32, 64)):
        for p in (own, weight, bias):
            p.grad = None
        logits = torch.nn.functional.linear(own[ids[rows, 0]], weight, bias)
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels[rows], reduction="none")
        losses.mean(0).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(table.weight, own)
    torch.testing.assert_close(linear.weight, weight)


@pytest.mark.slow
def test_quick_runs_ours_alone(tmp_path):
    file = tmp_path / "peers.csv"
    command = [sys.executable, "-m", "benchmarks.peers", "--quick", "--results", file]
    subprocess.run(command, check=True, cwd=record.ROOT, capture_output=True)
    rows = list(csv.DictReader(file.open()))
    assert {(row["library"], row["setting"]) for row in rows} == {(peers.OURS, s) for s in common.SETTINGS}
    aucs = ["test AUC", "test AUC", "test conditional AUC", "test marginal AUC"]  # of click, buy, and buy after click
    measures = ["training", "inference", "peak memory", "memory after imports", *aucs]
    assert [row["measure"] for row in rows] == measures[:4] * 3 + measures[4:] * 3
    assert all(float(row["median"]) > 0 and "torchrec==" in row["versions"] for row in rows)
    with (record.RESULTS / "peers.csv").open() as committed:
        assert set(rows[0]) == {*next(csv.reader(committed)), "note", "command"}
