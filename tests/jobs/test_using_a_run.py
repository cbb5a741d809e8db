"""`evaluate`, `calibrate` and `predict` on a small trained run."""

import importlib
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from tests import processes
from tests.jobs import funnel
from torchrec_mtl.__main__ import main
from torchrec_mtl.data.table import sources

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("used")
    data = funnel.prepare(folder / "tiny")
    options = ["--models", "mmoe", "--output", str(folder), "--name", "run", "training.batch_size=500"]
    assert main(["train", "--dataset", str(data), *options]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy, so that a calibration of one test is not there in another."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


def test_the_readme_and_the_page_do_what_they_say(trained, tmp_path, monkeypatch):
    """Their Python runs as it stands, and their commands are parsed as they stand."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "run", tmp_path / "runs" / "my_run")
    rows = pl.read_parquet(trained / "tiny" / "test.parquet")
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/a_trained_run.md")]
    for text in texts:
        (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "import load_run" in block]
        exec(code, names := {"rows": rows})
        assert "predictor" in names or names["predictions"].marginal.shape == (rows.height, 3)
    commands = re.findall(r"^torchrec-mtl ((?:predict|evaluate|calibrate|export) .*)$", "\n".join(texts), re.M)
    assert len(commands) == 8
    for command in commands:
        job, *arguments = shlex.split(command, comments=True)
        importlib.import_module(f"torchrec_mtl.jobs.{job}").parse(arguments)
    for name in ("config.json", "data", "mmoe/checkpoints", "results.json", "table.txt", "report.png"):
        assert f"`{name}" in texts[1]
        assert (trained / "run" / name).exists()


def scores(run, rows, output, *options):
    assert main(["predict", str(run), "--input", str(rows), "--output", str(output), *options]) == 0
    return pl.read_parquet(output)


def test_evaluate_measures_what_the_run_measured(trained, run, tmp_path, capsys):
    output = tmp_path / "figures.json"
    assert main(["evaluate", str(run), "--dataset", str(trained / "tiny"), "--output", str(output)]) == 0
    found = {(r["task"], r["space"], r["metric"]): r["value"] for r in json.loads(output.read_text())}
    measured = json.loads((run / "results.json").read_text())
    expected = {(r["task"], r["space"], r["metric"]): r["value"] for r in measured if r["split"] == "test"}
    assert found.keys() >= expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-9), key
    shown = capsys.readouterr().out
    assert "where the step before happened" in shown
    assert f"{expected['cart', 'after click', 'conditional_auc']:.4f}" in shown


def test_evaluate_by_a_column_measures_each_value_apart(trained, run, tmp_path):
    output, rows = tmp_path / "figures.json", pl.read_parquet(trained / "tiny" / "test.parquet")
    options = ["--dataset", str(trained / "tiny"), "--by", "item", "--output", str(output)]
    assert main(["evaluate", str(run), *options]) == 0
    found = {(r["slice"], r["task"], r["space"], r["metric"]): r["value"] for r in json.loads(output.read_text())}
    predicted = scores(run, trained / "tiny" / "test.parquet", tmp_path / "scores.parquet")
    assert {key[0] for key in found} == {None, *map(str, range(10))}
    for item in range(10):
        chosen = (rows["item"] == item).to_numpy()
        labels = rows["cart"].to_numpy()[chosen]
        expected = roc_auc_score(labels, predicted["cart"].to_numpy()[chosen])
        assert found[str(item), "cart", "impressions", "auc"] == pytest.approx(expected, abs=1e-9)
        assert found[str(item), "cart", "impressions", "num_rows"] == len(labels)


def test_two_ranks_evaluate_what_one_does(trained, run, tmp_path):
    command = ["evaluate", str(run), "--dataset", str(trained / "tiny"), "--by", "item", "--output"]
    assert main([*command, str(tmp_path / "one.json")]) == 0
    processes.run_program("torchrec_mtl", *command, str(tmp_path / "two.json"), ranks=2)
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert len(one) == len(two)
    for of_one, of_two in zip(one, two, strict=True):
        value, found = of_one.pop("value"), of_two.pop("value")
        assert of_one == of_two
        assert found == (value if value is None else pytest.approx(value, rel=1e-5)), (
            of_one
        )  # last bits of logits differ


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--by", "itm"], "`by` (='itm') must be a column of"),
        (["--by", "tags"], "`by` (='tags') must be a column with one value a row"),
        (["--by", "price"], "must have at most 100 values, not 501"),
        (["--split", "tests"], "`split` (='tests') must be one of"),
        (["--batch-size", "0"], "`batch_size` (=0) must be at least 1"),
        (["--model", "tafe"], "model 'tafe' must be one of ['mmoe']"),
    ],
)
def test_wrong_options_of_evaluate_are_one_sentence(options, message, trained, run, capsys):
    assert main(["evaluate", str(run), "--dataset", str(trained / "tiny"), *options]) == 2
    assert message in capsys.readouterr().err


def test_data_with_other_ids_is_refused(trained, run, tmp_path, capsys):
    other = funnel.prepare(tmp_path / "other")
    content = json.loads((other / "schema.json").read_text())
    content["vocabulary_digest"] = "another"
    (other / "schema.json").write_text(json.dumps(content))
    for command in (["evaluate"], ["calibrate"]):
        assert main([*command, str(run), "--dataset", str(other)]) == 2
        assert "must have the vocabulary_digest of the data that the run was trained on" in capsys.readouterr().err
    arguments = ["--input", str(other / "test.parquet"), "--output", str(tmp_path / "scores.parquet")]
    assert main(["predict", str(run), *arguments]) == 2
    assert "must have the vocabulary_digest" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_calibrate_stores_what_predict_then_uses(method, trained, run, tmp_path, capsys):
    rows = trained / "tiny" / "test.parquet"
    before = scores(run, rows, tmp_path / "before.parquet")
    assert main(["calibrate", str(run), "--dataset", str(trained / "tiny"), "--method", method]) == 0
    shown = capsys.readouterr().out
    after = scores(run, rows, tmp_path / "after.parquet")
    labels = pl.read_parquet(rows)
    for task, parent in (("cart", "click"), ("purchase", "cart")):
        assert (after[task] <= after[parent]).all()
    losses = [log_loss(labels["purchase"], each["purchase"]) for each in (before, after)]
    assert f"{losses[0]:.4f} -> {losses[1]:.4f}" in shown
    assert losses[1] < losses[0]


def test_predict_carries_columns_and_ranks_by_value(trained, run, tmp_path):
    rows = trained / "tiny" / "test.parquet"
    found = scores(run, rows, tmp_path / "scores.parquet", "--keep", "user,price", "--values", "click=1,purchase=20")
    original = pl.read_parquet(rows)
    assert found.columns[:2] == ["user", "price"]
    assert found["user"].equals(original["user"])
    np.testing.assert_allclose(found["score"], found["click"] + 20 * found["purchase"])


def test_predict_goes_on_where_it_was_stopped(trained, run, tmp_path, monkeypatch, capsys):
    """The parts that a killed call left are used, whatever is in them; only the same call may use them."""
    rows, output = trained / "tiny" / "test.parquet", tmp_path / "scores.parquet"
    monkeypatch.setattr(sources, "PART_ROWS", 100)
    whole = scores(run, rows, tmp_path / "whole.parquet")
    from torchrec_mtl.jobs import predict

    write, written = predict._write, []

    def fail_at_third(file, frame):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(file)
        write(file, frame)

    monkeypatch.setattr(predict, "_write", fail_at_third)
    arguments = ["predict", str(run), "--input", str(rows), "--output", str(output)]
    assert main(arguments) == 130
    assert not output.exists()
    assert len(list((tmp_path / "scores.parquet.partial").glob("part-*.parquet"))) == 2
    monkeypatch.setattr(predict, "_write", lambda file, frame: (written.append(file), write(file, frame)))
    assert main([*arguments, "--keep", "user"]) == 2
    assert "is of other rows or another model, and not finished" in capsys.readouterr().err
    assert main(arguments) == 0
    assert len(written) == 6
    assert pl.read_parquet(output).equals(whole)
    assert not (tmp_path / "scores.parquet.partial").exists()
    assert main(arguments) == 2
    assert "must not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop("item"), "column 'item' is missing"),
        (lambda rows: rows.with_columns(item=pl.lit(10)), "column 'item', row 0 (counted from 0): id (=10)"),
        (lambda rows: rows.with_columns(price=pl.lit(None, pl.Float64)), "column 'price', row 0 (counted from 0)"),
        (lambda rows: rows.head(0), "must have at least one row"),
    ],
)
def test_rows_that_cannot_be_scored_are_one_sentence(change, message, trained, run, tmp_path, capsys):
    file = tmp_path / "rows.parquet"
    change(pl.read_parquet(trained / "tiny" / "test.parquet")).write_parquet(file)
    assert main(["predict", str(run), "--input", str(file), "--output", str(tmp_path / "scores.parquet")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "scores.parquet").exists()


@pytest.mark.parametrize("text", ["click", "click=much", "=3", "by=3", "click=inf"])
def test_wrong_values_are_one_sentence(text, trained, run, tmp_path, capsys):
    rows, output = trained / "tiny" / "test.parquet", tmp_path / "scores.parquet"
    assert main(["predict", str(run), "--input", str(rows), "--output", str(output), "--values", text]) == 2
    assert "`values`" in capsys.readouterr().err
