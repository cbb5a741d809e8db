"""Whole runs of the training job on a small funnel, and what it says to wrong input."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tests import processes
from tests.jobs import funnel
from torchrec_mtl.__main__ import main
from torchrec_mtl.jobs.export import parse as parse_export
from torchrec_mtl.metrics import METRICS, measured_as
from torchrec_mtl.systems import SYSTEMS

SMALL = ["training.batch_size=64", "training.max_epochs=2", "training.evaluations_per_epoch=2"]
SMALL += ["training.optimizer.learning_rate=0.01", "training.table.learning_rate=0.01"]
SMALLER = ["tafe.model_args.num_layers=2", "tafe.model_args.num_inducing_points=4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return funnel.prepare(tmp_path_factory.mktemp("data") / "tiny")


TRAINED = ("single_task", "ple", "escm2_dr", "bpcm", "tafe")


def run(data, output, *arguments, models=",".join(TRAINED), name="run"):
    options = ["--dataset", str(data), "--output", str(output), "--name", name, "--models", models]
    return main(["train", *options, *SMALL, *SMALLER, *arguments])


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs")
    assert run(data, output) == 0
    return output / "run"


def test_results_are_rows_of_every_model_task_space_and_metric(finished):
    rows = json.loads((finished / "results.json").read_text())
    keys = {"model", "seed", "dataset", "data", "split", "task", "space", "metric", "value"}
    assert all(set(row) == keys for row in rows)
    tasks = funnel.SCHEMA.tasks
    for model in TRAINED:
        measured = {
            (row["task"], row["space"], row["metric"])
            for row in rows
            if row["model"] == model and row["split"] == "test"
        }
        for task in tasks:
            for space in tasks.spaces(task):
                of_events = {n: m for n, m in METRICS.items() if m.score in ("ranking", "probability")}
                for name, metric in of_events.items():
                    assert {(task, space, each) for each in measured_as(name, metric, space)} <= measured
    assert {row["dataset"] for row in rows} == {"tiny"}
    sizes = [r["value"] for r in rows if r["split"] == "test" and r["metric"] == "num_rows" and r["task"] == "click"]
    assert sizes == [funnel.ROWS["test"]] * len(TRAINED)


def test_the_models_learn(finished):
    rows = json.loads((finished / "results.json").read_text())
    for row in rows:
        if (row["task"], row["space"], row["metric"]) == ("click", "impressions", "auc"):
            assert row["value"] > 0.6, row


def test_table_picture_history_and_weights_are_left(finished):
    table = (finished / "table.txt").read_text()
    for model in TRAINED:
        assert SYSTEMS[model].title in table
    assert (finished / "report.png").read_bytes()[:4] == b"\x89PNG"
    config = json.loads((finished / "config.json").read_text())
    assert config["tafe"]["model_args"]["num_layers"] == 2
    assert config["tafe"]["training"]["batch_size"] == 64
    for model in TRAINED:
        history = [json.loads(line) for line in (finished / model / "metrics.jsonl").read_text().splitlines()]
        assert {row["step"] for row in history} == {12, 24, 36, 48}
        assert {row["split"] for row in history} == {"train", "valid"}  # the test split is not read before the end
        assert list((finished / model).glob("events.*"))
        assert len(list((finished / model / "checkpoints").glob("step_*/manifest.json"))) in (1, 2)


def test_a_run_repeats_bit_for_bit(finished, data, tmp_path):
    assert run(data, tmp_path) == 0
    for model in TRAINED:
        first, second = ((path / model / "metrics.jsonl").read_text() for path in (finished, tmp_path / "run"))
        assert first == second
    results = [json.loads((path / "results.json").read_text()) for path in (finished, tmp_path / "run")]
    for first, second in zip(*results, strict=True):
        assert first["metric"] == "samples_per_second" or first == second


def test_another_seed_is_another_run(finished, data, tmp_path):
    assert run(data, tmp_path, "--seed", "1", models="single_task") == 0
    first, second = ((path / "single_task" / "metrics.jsonl").read_text() for path in (finished, tmp_path / "run"))
    assert first.replace('"seed": 0', '"seed": 1') != second


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad", "sgd", "sparse_adam", "rowwise_adam"])
def test_tables_take_fused_optimizers(data, tmp_path, optimizer):
    options = [f"training.table.optimizer={optimizer}", "embedding_dim=8"]
    assert run(data, tmp_path, *options, models="shared_bottom") == 0


def test_two_ranks_take_a_part_each(data, tmp_path):
    options = ["--dataset", str(data), "--output", str(tmp_path), "--name", "two", "--models", "tafe"]
    shown = processes.run_program("torchrec_mtl", "train", *options, *SMALL, *SMALLER, ranks=2)
    plan = tmp_path / "two" / "tafe" / "plan.txt"
    assert plan.read_text().startswith("sharding over 2 ranks\n")
    first, *evaluations = shown[: shown.index("\n\n")].splitlines()  # then comes the table
    assert first.startswith("TAFE: 3 tables over 2 ranks (3 data_parallel), ")
    assert first.endswith(f" MB a rank with optimizer states; each in {plan}")
    of_chance = "TAFE epoch 1/2: warning: click: AUC 0.5"  # and nothing else
    assert all(
        re.match(r"TAFE epoch [12]/2, step \d+: loss ", each) or each.startswith(of_chance) for each in evaluations
    )
    rows = json.loads((tmp_path / "two" / "results.json").read_text())
    num_rows = [r["value"] for r in rows if r["metric"] == "num_rows" and r["space"] == "impressions"]
    assert num_rows == [funnel.ROWS["test"]] * 3


def test_a_run_says_what_to_do_next(data, tmp_path):
    options = ["--dataset", str(data), "--output", str(tmp_path), "--name", "my 'run'", "--models", "shared_bottom"]
    shown = processes.run_program("torchrec_mtl", "train", *options, *SMALL).splitlines()
    assert not any("warning" in line.lower() for line in shown)
    assert [bool(re.match("Shared-Bottom epoch", line)) for line in shown[:5]] == [True] * 4 + [False]
    *_, evaluate, predict, export = (shlex.split(line) for line in shown[shown.index("next:") :])
    assert [command[1] for command in (evaluate, predict, export)] == ["evaluate", "predict", "export"]
    assert main(evaluate[1:]) == main(predict[1:]) == 0
    assert len(pl.read_parquet(tmp_path / "my 'run'" / "scores.parquet")) == funnel.ROWS["test"]
    assert Path(parse_export(export[2:]).run, "report.json").is_file()


EACH_RANK_ITS_DATA = """
import os, sys
from torchrec_mtl.__main__ import main
whole, damaged, *options = sys.argv[1:]
sys.exit(main(["train", "--dataset", damaged if os.environ["RANK"] == "1" else whole, *options]))
"""


def test_a_rank_that_cannot_read_its_data_ends_all_ranks_with_its_sentence(data, tmp_path):
    """As a node does whose disk is damaged."""
    program = tmp_path / "program.py"
    program.write_text(EACH_RANK_ITS_DATA)
    damaged = funnel.prepare(tmp_path / "damaged")
    (damaged / "test.parquet").write_bytes(b"")
    options = ["--output", str(tmp_path / "runs"), "--name", "two", "--models", "shared_bottom"]
    with pytest.raises(RuntimeError) as failure:
        processes.run_program(program, str(data), str(damaged), *options, ranks=2)
    said = str(failure.value).splitlines()
    errors = [line for line in said if line.startswith("error: ")]
    assert len(errors) == 2  # of both ranks
    assert said[-1] == errors[0] == errors[1]
    assert f"{damaged}/test.parquet" in said[-1]
    assert "Traceback" not in str(failure.value)
    assert not (tmp_path / "runs").exists()


WRONG_ARGUMENTS = [
    (["--models", "tafe,esmmm"], r"model 'esmmm' must be one of ['single_task', "),
    (["--settings", "papers"], "`settings` (='papers') must be one of"),
    (["--dataset", "complete_journey", "--sample", "0"], "`sample` (=0.0) must be above 0 and at most 1"),
    (["--dataset", "/nowhere"], "/nowhere/schema.json: no such file"),
    (["--name", "../run"], "`name` (='../run') must be a name of 1 to 200 bytes without slashes"),
    (["--name", "n" * 300], "must be a name of 1 to 200 bytes without slashes"),
    (["--seed", "-1"], "`seed` (=-1) must be at least 0"),
    (["training.batch_size=0"], "`batch_size` (=0) must be at least 1"),
    (["training.batch_size=many"], "`training.batch_size` (='many') must be of type int"),
    (["training.epochs=3"], "has no setting 'training.epochs'; the nearest is 'training.max_epochs'"),
    (
        ["tafe.model_args.num_layer=3"],
        "has no setting 'model_args.num_layer'; the nearest is 'model_args.num_layers'",
    ),
    (["bpcm.loss_args.beta=3"], "bpcm has no setting 'loss_args.beta'"),
    (["training.precision=fp8"], "`training.precision` (='fp8') must be one of 'fp32', 'bf16'"),
    (["training.early_stopping_metric=acu"], "`early_stopping_metric` (='acu') must be one of ['auc', "),
    (["training.table.optimizer=lion"], "`training.table.optimizer` (='lion') must be one of"),
    (["tafe.model_args.num_heads=5"], "`num_heads` (=5) must divide `embedding_dim` (="),  # the last model's
    (
        ["--models", "tafe", "loss_args.task_weights=[1.0,2.0]"],
        "`task_weights` (=[1.0, 2.0]) must be one a task: ['click'",
    ),
    (["training.max_epochs"], "setting 'training.max_epochs' must have the form path=value"),
]


@pytest.mark.parametrize(("arguments", "sentence"), WRONG_ARGUMENTS)
def test_a_wrong_argument_is_one_sentence_and_status_2(data, tmp_path, capsys, arguments, sentence):
    assert main(["train", "--dataset", str(data), "--output", str(tmp_path), "--name", "run", *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert [line for line in error.splitlines() if "error:" in line] == [error.splitlines()[-1]]
    assert list(tmp_path.iterdir()) == []


def wrong(split, **changes):
    """A function that writes ``split`` of a data set anew with some values changed: column=(row, value)."""

    def change(directory: Path) -> None:
        file = directory / f"{split}.parquet"
        values = pl.read_parquet(file).to_dict(as_series=False)
        for column, (row, value) in changes.items():
            values[column][row] = value
        pl.DataFrame(values, strict=False).write_parquet(file)

    return change


def cut_in_half(directory: Path) -> None:
    file = directory / "valid.parquet"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(directory: Path) -> None:
    (directory / "test.parquet").write_bytes(b"")


def without_a_task(directory: Path) -> None:
    file = directory / "train.parquet"
    pl.read_parquet(file).drop("cart").write_parquet(file)


WRONG_DATA = [
    (wrong("train", item=(7, 10)), ["train.parquet", "'item'", "row 7", "10"]),
    (wrong("train", user=(3, -1)), ["train.parquet", "'user'", "row 3", "-1"]),
    (wrong("valid", click=(5, 2)), ["valid.parquet", "'click'", "row 5", "2"]),
    (wrong("valid", click=(5, float("nan"))), ["valid.parquet", "'click'", "row 5", "nan"]),
    (wrong("test", price=(0, float("nan"))), ["test.parquet", "'price'", "row 0", "nan"]),
    (wrong("test", click=(9, 0), cart=(9, 1)), ["test.parquet", "'cart'", "'click'", "row 9"]),
    (cut_in_half, ["valid.parquet"]),
    (empty, ["test.parquet"]),
    (without_a_task, ["train.parquet", "'cart'"]),
]


@pytest.mark.parametrize(("damage", "parts"), WRONG_DATA)
def test_wrong_data_is_one_sentence_and_status_2(tmp_path, capsys, damage, parts):
    directory = funnel.prepare(tmp_path / "data")
    damage(directory)
    output = tmp_path / "runs"
    assert run(directory, output, models="shared_bottom") == 2
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert sentence.startswith("error: ")
    for part in parts:
        assert part.lower() in sentence.lower()
    assert not output.exists()


def test_a_run_is_not_overwritten(finished, data, capsys):
    before = (finished / "results.json").read_bytes()
    assert run(data, finished.parent) == 0
    assert f"{finished}: is finished, and nothing is left to do" in capsys.readouterr().out
    assert run(data, finished.parent, "training.patience=2") == 2
    assert "is that of a finished run with bpcm.training.patience=3, now 2 is asked for" in capsys.readouterr().err
    assert (finished / "results.json").read_bytes() == before


def test_as_a_program_it_leaves_no_traceback(data, tmp_path):
    command = [sys.executable, "-m", "torchrec_mtl", "train", "--models", "esmmm", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "model 'esmmm' must be one of" in done.stderr
    assert "Traceback" not in done.stderr
