"""A training job that is interrupted: killed, asked to stop, or given by a batch it cannot use."""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import torch

from tests.jobs import funnel
from torchrec_mtl.__main__ import main
from torchrec_mtl.files import build_folder
from torchrec_mtl.jobs.datasets import DataSet
from torchrec_mtl.training.checkpoint import checkpoints, read_manifest, verify
from torchrec_mtl.training.loop import TrainingLoop

KILLS = int(os.environ.get("TORCHREC_MTL_KILLS", "5"))  # by hand: 50
INTERVAL = 3
MODELS = ["shared_bottom", "tafe"]
OPTIONS = ["training.batch_size=64", "training.max_epochs=2", "training.evaluations_per_epoch=2"]
OPTIONS += ["training.optimizer.learning_rate=0.01", "training.table.learning_rate=0.01", "model_args.dropout=0.2"]
OPTIONS += ["tafe.model_args.num_layers=2", "tafe.model_args.num_inducing_points=4", "embedding_dim=8"]
OPTIONS += ["training.table.optimizer=rowwise_adagrad", f"training.checkpoint.interval={INTERVAL}"]


def arguments(data: Path, output: Path, *more: str) -> list[str]:
    return [
        "--dataset",
        str(data),
        "--output",
        str(output),
        "--name",
        "run",
        "--models",
        ",".join(MODELS),
        *OPTIONS,
        *more,
    ]


def _run(argv: list[str], directory: Path) -> None:
    """The job in a process of its own, which writes down its output and every step that it has taken."""
    output = os.open(directory / "output.txt", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    take_step = TrainingLoop.take_step

    def noted(training: TrainingLoop) -> None:
        take_step(training)
        note = directory / f"{training.directory.name}.step"
        note.with_suffix(".new").write_text(str(training.result.step))
        os.replace(note.with_suffix(".new"), note)

    TrainingLoop.take_step = noted
    sys.exit(main(["train", *argv]))


class Job:
    """A run of the job that can be interrupted and started again."""

    def __init__(self, data: Path, output: Path, *more: str) -> None:
        output.mkdir(exist_ok=True)
        self.argv, self.directory = arguments(data, output, *more), output
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["torchrec_mtl.jobs.train", "tests.jobs.test_resume"])

    def start(self) -> None:
        self.process = self.context.Process(target=_run, args=(self.argv, self.directory))
        self.process.start()

    def wait(self) -> int:
        self.process.join(300)
        return self.process.exitcode

    def step(self, model: str) -> int:
        note = self.directory / f"{model}.step"
        return int(note.read_text()) if note.exists() else 0

    def checkpoints(self, model: str) -> list[Path]:
        return checkpoints(self.directory / "run" / model / "checkpoints")

    @property
    def said(self) -> str:
        return (self.directory / "output.txt").read_text()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return funnel.prepare(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The run without interruption, and how long it took."""
    job = Job(data, tmp_path_factory.mktemp("whole"))
    began = time.monotonic()
    job.start()
    assert job.wait() == 0, job.said
    return job.directory / "run", time.monotonic() - began


def assert_same_run(actual: Path, expected: Path) -> None:
    """Bit for bit; but a loss is summed in two parts, and time is time."""
    for model in MODELS:
        rows = [
            [json.loads(line) for line in (run / model / "metrics.jsonl").read_text().splitlines()]
            for run in (actual, expected)
        ]
        for ours, theirs in zip(*rows, strict=True):
            if ours["metric"] == "loss":
                assert ours.pop("value") == pytest.approx(theirs.pop("value"), rel=1e-12)
            assert ours == theirs
    results = [json.loads((run / "results.json").read_text()) for run in (actual, expected)]
    for ours, theirs in zip(*results, strict=True):
        assert ours == theirs or ours["metric"] == "samples_per_second"


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_loses_at_most_the_interval(data, whole, tmp_path):
    expected, seconds = whole
    job, rng = Job(data, tmp_path / "killed"), random.Random(0)
    for kill in range(KILLS):
        job.start()
        steps = [job.step(model) for model in MODELS]
        while kill % 2 and [job.step(model) for model in MODELS] == steps and job.process.is_alive():
            time.sleep(0.01)  # every other time, past what comes before the first step
        time.sleep(rng.uniform(0, 1) * seconds / KILLS)
        job.process.kill()
        if job.wait() == 0:
            break
        for model in MODELS:
            kept = job.checkpoints(model)
            for checkpoint in kept:
                verify(checkpoint)
            last = read_manifest(kept[-1])["step"] if kept else 0
            assert last >= job.step(model) - INTERVAL
    else:
        job.start()
        assert job.wait() == 0, job.said
    assert_same_run(job.directory / "run", expected)
    assert not list(job.directory.rglob("*.partial"))


@pytest.mark.slow
def test_sigterm_keeps_the_state_and_ends_with_status_0(data, whole, tmp_path):
    job = Job(data, tmp_path / "stopped")
    job.start()
    while job.step("tafe") < 5 and job.process.is_alive():
        time.sleep(0.01)
    os.kill(job.process.pid, signal.SIGTERM)
    assert job.wait() == 0, job.said
    assert "TAFE: asked to stop, after step" in job.said
    assert "not finished; the same command with `--name run` resumes it" in job.said
    last = job.checkpoints("tafe")[-1]
    assert read_manifest(last)["step"] == job.step("tafe") < 48
    job.start()
    assert job.wait() == 0, job.said
    assert f"TAFE: resumes from {last}" in job.said
    assert job.said.count("Shared-Bottom epoch 1/2, step") == 2  # it was finished, and is not trained again
    assert_same_run(job.directory / "run", whole[0])


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """TrainingLoop rows of which one has a price whose square is infinite."""
    directory = funnel.prepare(tmp_path_factory.mktemp("data") / "tiny")
    file = directory / "train.parquet"
    rows = pl.read_parquet(file)
    price = rows["price"].to_list()
    price[77] = 3e38
    rows.with_columns(price=pl.Series(price)).write_parquet(file)
    return directory


def test_a_loss_that_is_not_finite_stops_the_run_with_the_batch_kept(spoilt, tmp_path, capsys):
    assert main(["train", *arguments(spoilt, tmp_path), "--models", "shared_bottom"]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: the loss of step ")
    assert "is not finite; rank 0: logits or labels of click in 1 of 64 rows, cart in 1 of 64 rows" in told
    (file,) = (tmp_path / "run" / "shared_bottom").glob("non_finite_step_*_rank_0.pt")
    assert str(file) in told
    batch = torch.load(file, weights_only=True)
    assert batch["dense_features"].max().item() == pytest.approx(3e38)
    assert len(batch["labels"]) == len(batch["logits"]) == 64
    assert sum(batch["sparse_lengths"]) == len(batch["sparse_values"])


def test_such_batches_are_left_out_and_counted_if_asked(spoilt, tmp_path, capsys):
    options = ["--models", "shared_bottom", "training.non_finite_loss=skip"]
    assert main(["train", *arguments(spoilt, tmp_path), *options]) == 0
    said = capsys.readouterr().out
    assert "2 batches skipped" in said  # one an epoch
    assert said.count("a batch is skipped, rank 0: logits or labels of click in 1 of 64 rows") == 2
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    aucs = [row["value"] for row in results if (row["metric"], row["space"]) == ("auc", "impressions")]
    assert min(aucs) > 0.6


def test_an_unfinished_run_of_other_settings_is_left_alone(data, tmp_path, capsys):
    job = Job(data, tmp_path)
    job.start()
    while job.step("shared_bottom") < 4 and job.process.is_alive():
        time.sleep(0.01)
    os.kill(job.process.pid, signal.SIGKILL)
    job.wait()
    assert main(["train", *arguments(data, tmp_path, "training.patience=2")]) == 2
    told = capsys.readouterr().err
    assert "the unfinished run was made with shared_bottom.training.patience=3, now 2 is asked for" in told


@pytest.mark.slow
def test_a_second_job_of_the_same_name_is_refused_while_the_first_runs(data, whole, tmp_path, capsys):
    job = Job(data, tmp_path)
    job.start()
    while job.step("shared_bottom") < 4 and job.process.is_alive():
        time.sleep(0.01)
    assert main(["train", *arguments(data, tmp_path)]) == 2
    sentence = f"`name` (='run') must not be that of a run in progress, but process {job.process.pid} on "
    assert sentence in capsys.readouterr().err
    assert job.wait() == 0, job.said
    assert_same_run(job.directory / "run", whole[0])


def _prepare_for_ever(cache: Path, sample: float, raw: str) -> Path:
    def build(folder: Path) -> None:
        Path(raw, "begun").touch()
        while True:
            time.sleep(0.01)

    build_folder(Path(raw, "data"), lambda: False, build)
    raise AssertionError


FOR_EVER = DataSet(_prepare_for_ever)


def test_sigterm_during_preparation_ends_with_status_0(data, tmp_path):
    job = Job("tests.jobs.test_resume:FOR_EVER", tmp_path, "--raw", str(tmp_path))
    job.start()
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    job.process.terminate()
    assert job.wait() == 0, job.said
    assert "asked to stop before training; the same command starts again" in job.said
    assert not list(tmp_path.glob(".data.partial*"))


@pytest.mark.parametrize("moment", ["preparation", "training"])
def test_ctrl_c_ends_with_one_sentence_and_status_130(data, tmp_path, moment):
    while_training = Job(data, tmp_path)
    while_preparing = Job("tests.jobs.test_resume:FOR_EVER", tmp_path, "--raw", str(tmp_path))
    job = while_training if moment == "training" else while_preparing
    job.start()
    while not (tmp_path / "begun").exists() and job.step("shared_bottom") < 4 and job.process.is_alive():
        time.sleep(0.01)
    os.kill(job.process.pid, signal.SIGINT)
    assert job.wait() == 130, job.said
    assert job.said.splitlines()[-1] == "error: interrupted by Ctrl-C; what was saved before stays"
    assert "Traceback" not in job.said


def test_a_run_that_torchrun_restarts_needs_a_name(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert main(["train", *arguments(data, tmp_path), "--name", ""]) == 2
    assert "`name` must be given to a run that torchrun restarts" in capsys.readouterr().err


HUGE = "training.optimizer.learning_rate=1e38"
OVERFLOW = {  # what runs first into parameters that a huge learning rate has spoilt
    "evaluation": (
        ["training.batch_size=1500"],
        "Shared-Bottom, step 1, validation split: logits of click in 300 of 300",
    ),
    "loss": ([], "the loss of step 2 is not finite; rank 0: logits or labels of click in 64 of 64 rows"),
    "checkpoint": (["training.checkpoint.interval=1"], "is not finite after step 1, so no checkpoint is written"),
}


@pytest.mark.parametrize("first", OVERFLOW)
def test_parameters_that_overflow_are_named_with_status_1_and_never_saved(data, tmp_path, capsys, first):
    options, sentence = OVERFLOW[first]
    assert main(["train", *arguments(data, tmp_path), "--models", "shared_bottom", HUGE, *options]) == 1
    assert sentence in capsys.readouterr().err.splitlines()[-1]
    assert not checkpoints(tmp_path / "run" / "shared_bottom" / "checkpoints")


def test_many_skips_in_a_row_stop_the_run_with_their_count(data, tmp_path, capsys):
    options = [HUGE, "training.non_finite_loss=skip", "training.checkpoint.interval=0"]
    options += ["training.max_consecutive_skips=4", "training.evaluations_per_epoch=1"]
    assert main(["train", *arguments(data, tmp_path), "--models", "shared_bottom", *options]) == 1
    said = capsys.readouterr()
    assert "4 batches in a row were skipped, as many as `max_consecutive_skips` allows" in said.err.splitlines()[-1]
    skipped = [line for line in said.out.splitlines() if "a batch is skipped" in line]
    assert [line.split(":")[0] for line in skipped] == [f"Shared-Bottom, step {step}" for step in (2, 3, 4)]
    assert "rank 0: logits or labels of click in 64 of 64 rows, cart in 64 of 64 rows" in skipped[0]
