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
from benchmarks.peers.worker import PRODUCT, Candidate, Library

PYTHON = Path(sys.executable)


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return peers.save_rows(str(tmp_path), "quick")[1]


def test_a_library_that_failed_is_asked_no_more_and_says_why(rows):
    with Library(rows, Candidate("no_such", PYTHON), common.ADAM, "mmoe") as library:
        assert library.failure == "ModuleNotFoundError: No module named 'benchmarks.peers.no_such_models'"
        about = {"library": "no_such", "variant": "", "setting": common.ADAM, "model": "mmoe", "versions": ""}
        assert library.row == about
        library.process.kill()
        assert library.ask("build") is None
        assert library.failure.startswith("ModuleNotFoundError")


def test_a_process_that_was_killed_is_a_failure_too(rows):
    with Library(rows, Candidate(peers.OURS, PYTHON, "plain"), common.ADAM, "mmoe") as library:
        assert library.ask("build") > 0
        library.process.kill()
        assert library.ask("train", steps=2) is None
        assert library.failure == "its process ended with status -9"


def test_a_library_that_cannot_be_installed_has_a_row_that_says_why(monkeypatch):
    def refuse(name):
        raise OSError("no network")

    monkeypatch.setattr(peers, "python_with", refuse)
    rows = []
    assert peers.interpreters([peers.OURS, "fuxictr"], SimpleNamespace(add=rows.append)) == {peers.OURS: PYTHON}
    assert rows == [{"library": "fuxictr", "versions": "", "error": "not installed: no network"}]


class Answers:
    """A library in this process; what it does not answer is a failure."""

    def __init__(self, library, variant="", **answers):
        self.row = {"library": library, "variant": variant, "model": "mmoe"}
        self.failure, self.answers = "", answers

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


def test_speeds_are_by_cpu_time_and_beside_the_fastest_peer_and_ours_before():
    memory = {"memory above imports": 10.4, "memory after imports": 90.0}
    product = 2 * math.prod(PRODUCT)
    ours = Answers(peers.OURS, "plain", build=10, flops=1000, multiply=product / 1e9, train=2, infer=1, memory=memory)
    before = Answers(peers.OURS, "plain, before", build=10, train=2.5, infer=8, memory=memory)
    slow = Answers("slow", build=11, train=6.0, infer=4.0, memory=memory)
    fast = Answers("fast", build=11, train=3.0, infer=2.0, memory=memory)
    libraries = [ours, before, slow, fast, Answers("failed", build=12)]
    *measured, failed = peers.measure_speed(common.WORKLOADS["speed"], libraries, repeats=2)
    kinds = [("inference", size) for size in (1, 64, 1024, 8192)] + [("training", 1024)]
    names = [(peers.OURS, "plain"), (peers.OURS, "plain, before"), ("slow", ""), ("fast", "")]
    speeds = [row for row in measured if row["unit"] != "MiB"]
    found = [(row["measure"], row["batch_size"], row["library"], row["variant"]) for row in speeds]
    assert found == [(*kind, *name) for kind in kinds for name in names]
    at_1024 = [row for row in speeds if row["measure"] == "inference" and row["batch_size"] == 1024]
    assert [row["median"] for row in at_1024] == [8.192, 1.024, 2.048, 4.096]  # 8 batches
    assert [row["to_best_peer"] for row in at_1024] == [2, 0.25, 0.5, 1]
    assert [row.get("to_before") for row in at_1024] == [8, None, None, None]
    assert [row["product_share"] for row in at_1024] == [0.008, 0.001, 0.002, 0.004]  # of 10^9 a second
    training = [row for row in speeds if row["measure"] == "training"]
    assert [row["median"] for row in training] == [2.048, 1.638, 0.683, 1.365]  # 4 steps of 1,024 rows
    assert [row["to_best_peer"] for row in training] == [1.5, 1.2, 0.5, 1]
    assert [row["median"] for row in measured if row["unit"] == "MiB"] == [10, 90] * 4
    assert (failed["library"], failed["parameters"], failed["error"]) == ("failed", 12, "ValueError: no")


@pytest.mark.verify
def test_the_library_as_it_was_runs_beside_what_it_is(tmp_path, rows):
    tree = peers.tree_of("HEAD", tmp_path)
    script = "import torchrec_mtl; from benchmarks import record; print(torchrec_mtl.__file__, record.__file__)"
    printed = subprocess.run([sys.executable, "-c", script], cwd=tree, check=True, capture_output=True, text=True)
    assert all(str(tmp_path) in file for file in printed.stdout.split())
    with Library(rows, Candidate(peers.OURS, PYTHON, "plain", tree), common.LIKE_FOR_LIKE, "mmoe") as library:
        assert library.row["variant"] == "plain, before"
        assert library.ask("build") == 2986


def test_the_page_says_what_bf16_does_to_auc():
    found: dict[str, dict[tuple[str, ...], list[float]]] = {"sharded": {}, "bf16": {}}
    with (record.RESULTS / "bf16_auc.csv").open() as lines:
        for row in csv.DictReader(lines):
            about = tuple(row[name] for name in ("model", "measure", "task", "space"))
            found[row["variant"]][about] = [float(value) for value in row["by_seed"].split()]
    differences = [np.subtract(found["bf16"][about], of_fp32) for about, of_fp32 in found["sharded"].items()]
    means, spread = [each.mean() for each in differences], np.mean([each.std(ddof=1) for each in differences])
    page = " ".join((record.ROOT / "docs" / "peers.md").read_text().split())
    assert f"{np.mean(means):+.4f} on average, {min(means):+.4f} to {max(means):+.4f} of single ones" in page
    assert f"deviates by {spread:.4f} from seed to seed" in page
    assert {len(each) for each in differences} == {5}


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


def run_quick(program, file):
    command = [sys.executable, "-m", f"benchmarks.{program}", "--quick", "--results", file]
    subprocess.run(command, check=True, cwd=record.ROOT, capture_output=True)
    rows = list(csv.DictReader(file.open()))
    assert {row["library"] for row in rows} == {peers.OURS}
    assert all(float(row["median"]) > 0 and "torchrec==" in row["versions"] for row in rows)
    return rows


@pytest.mark.verify
def test_quick_runs_all_ways_of_ours(tmp_path):
    rows = run_quick("peers", tmp_path / "peers.csv")
    expected = {(setting, variant) for setting, variants in peers.VARIANTS.items() for variant in variants}
    bf16 = (common.LIKE_FOR_LIKE, "bf16")
    assert {(row["setting"], row["variant"]) for row in rows} | {bf16} == expected
    first = [row for row in rows if (row["setting"], row["variant"]) == (common.LIKE_FOR_LIKE, "plain")]
    assert [(row["measure"], row["batch_size"]) for row in first[:3]] == [
        ("inference", "1"),
        ("inference", "64"),
        ("training", "256"),
    ]


@pytest.mark.verify
def test_quick_measures_auc(tmp_path):
    rows = run_quick("peers.quality", tmp_path / "peers_auc.csv")
    aucs = ["test AUC", "test AUC", "test conditional AUC", "test marginal AUC"]  # of click, buy, and buy after click
    assert [row["measure"] for row in rows] == aucs * 4  # bf16 too
