"""Other libraries beside ours: turns, failures, and what is said of the figures. Nothing is installed."""

import csv
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import record
from benchmarks.peers import __main__ as peers
from benchmarks.peers import common, summary
from benchmarks.peers.turns import Library
from benchmarks.peers.work import OURS, QUICK

FAKE = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "die":
        raise RuntimeError("killed")
    failed = request["do"] == "fail"
    print(json.dumps({"error": "ValueError: no"} if failed else {"is": request}), flush=True)
"""


@pytest.fixture
def fake(tmp_path: Path):
    worker = tmp_path / "fake.py"
    worker.write_text(FAKE)
    with Library("fake", sys.executable, tmp_path, worker=worker) as library:
        yield library


def test_a_turn_is_a_question_and_its_answer(fake):
    assert fake.ask("train", steps=3) == {"do": "train", "steps": 3}
    assert not fake.failure


@pytest.mark.parametrize(("do", "failure"), [("fail", "ValueError: no"), ("die", "RuntimeError: killed")])
def test_a_library_that_failed_is_asked_no_more_and_says_why(fake, do, failure):
    assert fake.ask(do) is None
    assert fake.ask("train", steps=3) is None
    assert fake.failure == failure


def test_a_library_that_is_not_there_has_a_row_with_its_error(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "python_with", lambda name: Path(sys.executable))
    rows = []
    assert peers.find(["no_such"], QUICK.save(str(tmp_path)), rows) == {}
    assert rows == [{"library": "no_such", "error": "ModuleNotFoundError: No module named 'no_such_models'"}]


def test_a_failed_installation_has_a_row_too(tmp_path, monkeypatch):
    def refuse(name):
        raise OSError("no network")

    monkeypatch.setattr(peers, "python_with", refuse)
    rows = []
    assert peers.find(["fuxictr"], tmp_path, rows) == {}
    assert rows == [{"library": "fuxictr", "error": "not installed: no network"}]


class Answers:
    """A library in this process, which predicts what it is told to."""

    def __init__(self, name: str, probabilities: np.ndarray) -> None:
        self.name, self.probabilities, self.failure = name, probabilities, ""

    def ask(self, do: str, **arguments):
        if do == "probabilities":
            np.save(arguments["file"], self.probabilities)


def test_no_figures_where_predictions_differ(tmp_path):
    ours = np.random.default_rng(0).random((1000, 2))
    peers.check_alike([Answers(OURS, ours), Answers("same", ours + 1e-5)], "mmoe", common.ADAM, tmp_path)
    with pytest.raises(SystemExit, match=r"mmoe: other's probabilities are 1.0e-03 from ours"):
        peers.check_alike([Answers(OURS, ours), Answers("other", ours + 1e-3)], "mmoe", common.ADAM, tmp_path)
    with pytest.raises(SystemExit, match="other's probabilities are nan"):
        peers.check_alike([Answers(OURS, ours), Answers("other", ours * math.nan)], "mmoe", common.ADAM, tmp_path)


class Mixed(torch.nn.Module):
    """A table, a matrix and a bias, and the stacked matrices and biases of two experts."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = torch.nn.Embedding(1000, 8), torch.nn.Linear(500, 400)
        self.weights = torch.nn.Parameter(torch.ones(2, 300, 400))
        self.biases = torch.nn.Parameter(torch.ones(2, 300))


def test_initial_values_are_drawn_alike_however_parameters_are_arranged():
    model = Mixed()
    common.draw_alike(model)
    assert model.table.weight.std().item() == pytest.approx(common.TABLE_STD, rel=0.05)
    assert model.linear.weight.std().item() == pytest.approx((2 / 500) ** 0.5, rel=0.05)
    assert model.weights.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.05)
    assert not model.biases.any()
    assert not model.linear.bias.any()


@pytest.mark.parametrize("setting", [common.LIKE_FOR_LIKE, common.ADAM])
def test_training_alike_is_on_the_sum_of_the_tasks_losses(setting):
    torch.manual_seed(0)
    ids, labels = torch.randint(9, (64, 1)), torch.randint(2, (64, 2)).float()
    sizes = common.Sizes((9,), 2, 32, 2, 2, (2,), (2,))
    table = torch.nn.Embedding(9, 2)
    linear = torch.nn.Linear(2, 2)
    module = torch.nn.ModuleList([table, linear])

    def probabilities(ids):
        return linear(table(ids[:, 0])).sigmoid()

    candidate = common.alike(module, probabilities, sizes, setting, common.draw_alike)
    own, weight, bias = (torch.nn.Parameter(p.detach().clone()) for p in module.parameters())
    optimizers = [
        torch.optim.Adam([weight, bias], lr=common.LEARNING_RATE),
        torch.optim.Adam([own], lr=common.LEARNING_RATE)
        if setting == common.ADAM
        else torch.optim.Adagrad([own], lr=common.TABLE_LEARNING_RATE, eps=common.TABLE_EPS),
    ]
    candidate.train(ids, labels)
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


def rows_of(library: str, ours_to_this: float, aucs: tuple[float, float]) -> list[dict]:
    about = {"library": library, "setting": "like for like", "model": "mmoe"}
    speed = {"measure": "training", "ours_to_this": ours_to_this, "median": 1.0}
    of_tasks = [
        {"measure": "test AUC", "task": f"y{t}", "space": "impressions", "median": a} for t, a in enumerate(aucs)
    ]
    return [{**about, **row} for row in (speed, *of_tasks)]


def test_goals_are_held_against_the_fastest_and_the_best_peer():
    ours, slow = rows_of(OURS, 1.0, (0.700, 0.80)), rows_of("slow", 2.0, (0.702, 0.70))
    speed, quality = summary.goals([*ours, *slow])
    assert speed.endswith("2.00 times the fastest peer's training speed, goal 1.2: reached")
    assert quality.endswith("AUC -0.0020 to the best peer's, goal -0.003: reached")
    speed, quality = summary.goals([*ours, *slow, *rows_of("fast", 1.1, (0.6, 0.81))])
    assert speed.endswith("1.10 times the fastest peer's training speed, goal 1.2: missed")
    assert quality.endswith("AUC -0.0100 to the best peer's, goal -0.003: missed")
    assert summary.goals(ours) == []


def test_run_small_the_program_runs_ours_alone(tmp_path, monkeypatch, capsys):
    file = tmp_path / "peers.csv"
    monkeypatch.setattr(sys, "argv", ["peers", "--quick", "--results", str(file)])
    monkeypatch.setattr(record, "begin", lambda: dict.fromkeys(record.CIRCUMSTANCES, "x"))
    peers.main()
    rows = list(csv.DictReader(file.open()))
    assert {(row["library"], row["setting"]) for row in rows} == {(OURS, s) for s in common.SETTINGS}
    measures = ["training", "inference", "peak memory", "memory after imports", *["test AUC"] * 3]
    assert [row["measure"] for row in rows] == measures[:4] * 3 + measures[4:] * 3
    assert all(float(row["median"]) > 0 and "torchrec==" in row["versions"] for row in rows)
    told = capsys.readouterr().out
    assert "left out: ['torch_rechub', 'deepctr_torch', 'fuxictr']" in told
    assert "failed" not in told
