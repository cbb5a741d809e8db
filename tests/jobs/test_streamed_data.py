"""The training job reads a data set in place: from a bucket, on ranks under torchrun, resumed on another number."""

import json
from pathlib import Path

import polars as pl
import pytest

from tests import processes
from tests.jobs import funnel
from tests.s3 import BUCKET, S3Server
from torchrec_mtl.__main__ import main
from torchrec_mtl.data import Field, Schema, StreamLoader, stream_split
from torchrec_mtl.jobs.compare.job import parser, plans
from torchrec_mtl.jobs.compare.runs import Run, make
from torchrec_mtl.jobs.loading import load_run
from torchrec_mtl.jobs.unknown_ids import unknown_ids
from torchrec_mtl.tasks import TaskChain
from torchrec_mtl.training.loop import TrainingLoop

OPTIONS = ["--models", "shared_bottom", "--name", "run", "--metrics", "auc,gauc"]
OPTIONS += ["training.batch_size=60", "training.max_epochs=2", "training.shuffle_window=400", "embedding_dim=4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A funnel in small row groups; the training split in parts."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    funnel.prepare(folder)
    for split in funnel.ROWS:
        frame = pl.read_parquet(folder / f"{split}.parquet")
        if split == "train":
            (folder / "train.parquet").unlink()
            (folder / "train").mkdir()
            frame[:1000].write_parquet(folder / "train" / "part-0.parquet", row_group_size=90)
            frame[1000:].write_parquet(folder / "train" / "part-1.parquet", row_group_size=90)
        else:
            frame.write_parquet(folder / f"{split}.parquet", row_group_size=90)
    return folder


def train(data: str | Path, output: Path, *more: str) -> int:
    return main(["train", "--dataset", str(data), "--reader", "stream", "--output", str(output), *OPTIONS, *more])


def results(output: Path) -> list[dict]:
    return [row for row in json.loads((output / "run" / "results.json").read_text()) if row["split"] == "test"]


class Killed(BaseException):
    """Stands for the end of a process."""


@pytest.mark.verify
def test_a_run_killed_on_one_rank_resumes_on_two_that_read_a_bucket_and_ends_the_same(
    server: S3Server, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(data, tmp_path / "whole") == 0
    take_step = TrainingLoop.take_step

    def step_or_end(loop: TrainingLoop) -> None:
        if loop.result.step == 12:
            raise Killed
        take_step(loop)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "take_step", step_or_end)
        with pytest.raises(Killed):
            train(data, tmp_path / "killed", "training.checkpoint.interval=5")
    server.upload(data, "tiny")
    uri = server.uri("tiny", more="&anonymous=true")  # the ranks have the environment of an earlier process
    resumed = ["train", "--dataset", uri, "--output", str(tmp_path / "killed"), *OPTIONS]
    said = processes.run_program("torchrec_mtl", *resumed, "training.checkpoint.interval=5", ranks=2)
    assert "resumes from" in said
    assert "step_000000010" in said
    there, here = results(tmp_path / "killed"), results(tmp_path / "whole")
    assert len(there) == len(here)
    for of_two, of_one in zip(there, here, strict=True):
        assert of_two["data"] == of_one["data"]
        assert of_two["value"] == pytest.approx(of_one["value"], rel=1e-3, nan_ok=True), of_one
        if of_two["metric"] == "num_rows" and of_two["space"] == "impressions":
            assert of_two["value"] == funnel.ROWS["test"]


def test_a_run_is_not_resumed_by_the_other_reader(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = funnel.prepare(tmp_path / "tiny")
    assert train(f"file://{folder}", tmp_path) == 0
    assert load_run(tmp_path / "run").schema == Schema.load(folder)
    assert train(folder, tmp_path, "--reader", "mapped") == 2
    error = capsys.readouterr().err
    assert "is that of a finished run with shared_bottom.data='tiny, 1500 + 300 + 501 rows, streamed, finger" in error


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dataset", f"s3://{BUCKET}/tiny", "--reader", "mapped"], "`reader` (='mapped') must be 'stream' or 'auto'"),
        (["--reader", "map"], "`reader` (='map') must be one of ['auto', 'mapped', 'stream']"),
    ],
)
def test_a_wrong_reader_is_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["train", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_a_bad_row_ends_the_run_with_its_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = funnel.prepare(tmp_path / "tiny")
    file = folder / "train.parquet"
    frame = pl.read_parquet(file).with_row_index()
    wrong = frame.with_columns(pl.when(pl.col("index") == 1234).then(77).otherwise(pl.col("item")).alias("item"))
    wrong.drop("index").write_parquet(file, row_group_size=100)
    assert train(folder, tmp_path) == 2
    error = capsys.readouterr().err
    assert f"{file}: column 'item', row 1234 (counted from 0): id (=77) must be at least 0" in error
    assert "Traceback" not in error


def test_unknown_ids_of_a_stream_have_their_row_and_are_not_counted(tmp_path: Path) -> None:
    fields = [Field("item", 5, unknown_row=0)]
    Schema("shop", fields, TaskChain(["click"])).save(tmp_path)
    pl.DataFrame({"item": [4, 99, 2], "click": [0, 1, 0]}).write_parquet(tmp_path / "train.parquet")
    split = stream_split(tmp_path, "train")
    assert next(iter(StreamLoader(split, 3))).sparse_features.values().tolist() == [4, 0, 2]
    assert unknown_ids({"train": split}) == ["data that are read in place: unknown ids are not counted"]


def test_a_trained_run_is_used_on_data_at_a_uri_as_on_a_folder(
    server: S3Server, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The validation and test splits are files, so that of a folder they are mapped."""
    assert train(data, tmp_path) == 0
    uri, run = server.upload(data, "used"), str(tmp_path / "run")
    told: list[str] = []
    for place in (str(data), uri):
        capsys.readouterr()
        assert main(["evaluate", run, "--dataset", place, "--by", "item", "--output", str(tmp_path / "all.json")]) == 0
        assert main(["calibrate", run, "--dataset", place]) == 0
        told.append(capsys.readouterr().out + (tmp_path / "all.json").read_text())
        (tmp_path / "run" / "shared_bottom" / "calibration.json").unlink()
    assert told[0] == told[1]
    scores = []
    for number, place in enumerate((f"{data}/test.parquet", uri.replace("?", "/test.parquet?", 1))):
        output = tmp_path / f"scores_{number}.parquet"
        assert main(["predict", run, "--input", place, "--output", str(output)]) == 0
        scores.append(pl.read_parquet(output))
    assert scores[0].equals(scores[1])
    assert main(["evaluate", run, "--dataset", uri, "--by", "itm"]) == 2
    assert "`by` (='itm') must be a column of s3://" in capsys.readouterr().err
    assert main(["export", run, "--dataset", uri, "--output", str(tmp_path / "package")]) == 2
    assert "must be a folder, in which rows can be looked up" in capsys.readouterr().err


def test_compare_trains_on_data_at_a_uri(data: Path, tmp_path: Path) -> None:
    uri = f"file://{data}"
    (plan,) = plans(parser().parse(["--datasets", uri, "--models", "shared_bottom", "--protocol", "paper"]))
    assert plan.dataset == uri
    config = plan.config("shared_bottom", [], 0, ["embedding_dim=4", "training.max_epochs=1"])
    make(Run("final", "", plan.dataset, config, tmp_path / "made", data=plan.data))
    result = json.loads((tmp_path / "made" / "result.json").read_text())
    assert ", streamed, " in result["data"]
    assert {row["task"] for row in result["test"]} == {"click", "cart", "purchase"}
