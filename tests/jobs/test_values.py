"""A funnel with values through all jobs: declared, prepared, trained on one rank and on two, measured, predicted."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import mean_absolute_error, mean_pinball_loss, root_mean_squared_error

from tests import processes
from tests.generators.spend import rows, write_log
from torchrec_mtl import (
    ZILN,
    ByColumn,
    Classes,
    Ordinal,
    Quantile,
    SquaredError,
    Table,
    Task,
    TaskForest,
    Vocabulary,
    load_run,
)
from torchrec_mtl.__main__ import main
from torchrec_mtl.data.table import prepare_table
from torchrec_mtl.jobs.results import table

NUM_ROWS = 2500
TASKS = TaskForest(
    Task("click"),
    Task("buy", after="click"),
    Task("spend", after="buy", kind=ZILN()),
    Task("dwell", after="click", kind=Quantile((0.5, 0.9))),
    Task("paid", after="buy", label_column="spend_again", kind=SquaredError()),
    Task("stars", after="buy", kind=Ordinal(5)),
    Task("class", after="buy", label_column="stars_again", kind=Classes(5)),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("values")
    log = write_log(folder / "log.parquet", NUM_ROWS)
    pl.read_parquet(log).with_columns(spend_again=pl.col("spend") * 100, stars_again="stars").write_parquet(log)
    fields = [Vocabulary("user"), Vocabulary("item")]
    data = prepare_table(Table("shop", str(log), TASKS, fields, split=ByColumn("split")), folder / "data")
    options = ["--dataset", str(data), "--output", str(folder), "--models", "esmm", "model_args.tower_layer_sizes=[16]"]
    options += ["training.batch_size=100", "training.max_epochs=6", "training.table.sharding=row_wise"]
    options += [
        "embedding_dim=8",
        "training.early_stopping_metric=gini",
        "training.table.optimizer=adagrad",
        "training.table.learning_rate=0.1",
        "training.optimizer.learning_rate=0.01",
    ]
    assert main(["train", "--name", "one", *options]) == 0
    processes.run_program("torchrec_mtl", "train", "--name", "two", *options, ranks=2)
    return folder


def results(folder: Path, run: str) -> dict[tuple, float]:
    found = json.loads((folder / run / "results.json").read_text())
    return {tuple(row[k] for k in ("model", "split", "task", "space", "metric")): row["value"] for row in found}


def test_two_ranks_train_what_one_does(trained):
    one, two = results(trained, "one"), results(trained, "two")
    assert one.keys() == two.keys()
    for key, value in one.items():
        if key[-1] != "samples_per_second":
            tolerance = 5e-3 if key[-1].endswith(("auc", "gini")) else 1e-3
            assert two[key] == pytest.approx(value, rel=tolerance, abs=tolerance), key


def test_values_are_learned(trained):
    """Better than the mean, whose RMSE is the deviation, and in the raw unit of each."""
    found, test = results(trained, "one"), rows(NUM_ROWS).filter(pl.col("split") == "test")
    spend = test.filter("buy")["spend"]
    of_spend = {name: found["esmm", "test", "spend", "after buy", name] for name in ("rmse", "gini", "num_rows")}
    assert of_spend["num_rows"] == len(spend)
    assert of_spend["rmse"] < spend.std()
    assert of_spend["gini"] > 0.1
    assert found["esmm", "test", "spend", "after buy", "value_calibration"] == pytest.approx(1, abs=0.25)
    assert found["esmm", "test", "paid", "after buy", "rmse"] == pytest.approx(100 * of_spend["rmse"], rel=0.1)
    assert found["esmm", "test", "dwell", "after click", "coverage_0.5"] == pytest.approx(0.5, abs=0.15)
    assert found["esmm", "test", "dwell", "after click", "coverage_0.9"] == pytest.approx(0.9, abs=0.07)
    assert found["esmm", "test", "buy", "after click", "conditional_auc"] > 0.55
    shares = test.filter("buy")["stars"].value_counts(normalize=True)["proportion"]
    for task in ("stars", "class"):
        assert found["esmm", "test", task, "after buy", "class_log_loss"] < -(shares * shares.log()).sum()
        assert found["esmm", "test", task, "after buy", "class_accuracy"] > shares.max()
    assert (
        found["esmm", "test", "stars", "after buy", "class_mae"] < (test["stars"] - test["stars"].median()).abs().mean()
    )


def test_predicted_values_are_those_that_were_measured(trained, tmp_path):
    output, log = tmp_path / "scores.parquet", trained / "log.parquet"
    command = ["predict", str(trained / "one" / "esmm"), "--input", str(log), "--output", str(output)]
    assert main([*command, "--values", "spend=1,click=0.1", "--keep", "split"]) == 0
    scores, raw, measured = pl.read_parquet(output), pl.read_parquet(log), results(trained, "one")
    assert scores.columns == [
        "split", "click", "buy", "spend", "paid", "buy_after_click", "spend_after_buy", "paid_after_buy",
        "dwell_0.5_after_click", "dwell_0.9_after_click", *(f"stars_{n}_after_buy" for n in range(5)),
        *(f"class_{n}_after_buy" for n in range(5)), "score",
    ]  # fmt: skip
    stars = scores.select(f"stars_{n}_after_buy" for n in range(5)).to_numpy()
    np.testing.assert_allclose(stars.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(scores["spend"], scores["buy"] * scores["spend_after_buy"], rtol=1e-9)
    np.testing.assert_allclose(scores["score"], scores["spend"] + 0.1 * scores["click"], rtol=1e-9)
    test = scores["split"] == "test"
    bought, clicked = test & raw["buy"], test & raw["click"]
    worth = raw["spend"].fill_null(0).filter(test)
    quantiles = [(q, scores[f"dwell_{q}_after_click"].filter(clicked)) for q in (0.5, 0.9)]
    of_dwell = [mean_pinball_loss(raw["dwell"].filter(clicked), found, alpha=q) for q, found in quantiles]
    expected = {
        ("spend", "impressions", "rmse"): root_mean_squared_error(worth, scores["spend"].filter(test)),
        ("spend", "after buy", "mae"): mean_absolute_error(
            raw["spend"].filter(bought), scores["spend_after_buy"].filter(bought)
        ),
        ("dwell", "after click", "pinball"): np.mean(of_dwell),
    }
    for key, value in expected.items():
        assert measured[("esmm", "test", *key)] == pytest.approx(value, rel=1e-5), key
    again = load_run(trained / "two", "esmm").predictor().predict(raw.select("user", "item")).to_polars()
    np.testing.assert_allclose(again["spend"], scores["spend"], rtol=5e-3)


def test_evaluate_and_calibrate_go_with_values(trained, tmp_path, capsys):
    shutil.copytree(trained / "two", tmp_path / "run")
    run, output = str(tmp_path / "run" / "esmm"), tmp_path / "figures.json"
    assert main(["evaluate", run, "--dataset", str(trained / "data"), "--output", str(output)]) == 0
    found = {(row["task"], row["space"], row["metric"]): row["value"] for row in json.loads(output.read_text())}
    measured = results(trained, "two").items()
    expected = {key[2:]: value for key, value in measured if key[:2] == ("esmm", "test")}
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-3, abs=1e-3), key  # the last bits of logits differ
    assert "coverage_0.9  pinball" in capsys.readouterr().out
    before = load_run(run).predictor().predict([{"user": "u1", "item": "i3"}])
    assert main(["calibrate", run, "--dataset", str(trained / "data"), "--method", "platt"]) == 0
    after = load_run(run).predictor().predict([{"user": "u1", "item": "i3"}])
    np.testing.assert_allclose(after.conditional[:, 2], before.conditional[:, 2], rtol=1e-9)
    np.testing.assert_allclose(after.marginal[:, 2], after.marginal[:, 1] * after.conditional[:, 2], rtol=1e-9)


def test_the_table_shows_values_apart(trained):
    text = (trained / "one" / "table.txt").read_text()
    assert text.startswith("shop: click -> (buy -> (spend, paid, stars, class), dwell)")
    for block in (
        "test AUC, all impressions  click   buy     samples/s",
        "test RMSE, where the step before happened  spend    paid",
        "test normalised Gini, all impressions  spend   paid",
        "test pinball loss, where the step before happened  dwell",
        "test accuracy, where the step before happened  stars   class",
    ):
        assert re.sub(" +", " ", block) in re.sub(" +", " ", text)
    assert table([], TASKS)


def test_a_value_that_the_data_lack_is_one_sentence(trained, tmp_path, capsys):
    command = ["predict", str(trained / "one" / "esmm"), "--input", str(trained / "log.parquet")]
    command += ["--output", str(tmp_path / "scores.parquet"), "--values", "dwell=1"]
    assert main(command) == 2
    assert "`values` must not count 'dwell', which has no expected value" in capsys.readouterr().err
