"""A model, a loss, a metric and a data set from a package outside train through the command line, and are reported."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.extension import package
from torchrec_mtl import components

OURS, OWN = "shared_bottom", "my_funnel.models:SHARED_AND_OWN"
MODELS = f"{OURS},{OWN}"
METRICS = "auc,my_funnel.metrics:AVERAGE_PRECISION"
LOSS = ["loss=my_funnel.losses:Uncertainty", "loss_args.start=0.1"]
BY_THE_METRIC = "training.early_stopping_metric=average_precision"
PROGRAM = Path(sys.executable).with_name("torchrec-mtl")


def torchrec_mtl(folder: Path, *arguments: str, models: str = MODELS) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    environment.pop("PYTHONPATH", None)  # the package is found because it lies where the program is run
    options = ["--models", models, "--metrics", METRICS]
    return subprocess.run(
        [PROGRAM, *arguments, *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's."""
    made = tmp_path_factory.mktemp("user")
    package.write(made)
    return made


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    done = torchrec_mtl(folder, "train", "--dataset", "my_funnel.data:SHOP", "--name", "first", *LOSS, BY_THE_METRIC)
    assert done.returncode == 0, done.stderr
    assert re.search(r"validation average precision 0\.\d+ / 0\.\d+ / 0\.\d+", done.stdout)
    return folder / "runs" / "first"


def test_the_table_has_all_four(trained: Path) -> None:
    table = (trained / "table.txt").read_text()
    assert table.startswith("shop: click -> (like, buy)")
    rows = [re.split(r"\s{2,}", line) for line in table.splitlines() if line.startswith("Shared and Own")]
    assert [len(row) for row in rows] == [7, 3, 3, 4, 3, 3, 3]  # tasks and speed, parameters, loss; tasks after one
    assert rows[0][-1] == "my_funnel.losses:Uncertainty"
    assert "test average precision, all impressions" in table
    assert re.search(r"test conditional AUC, where the step before happened\s+like\s+buy\n", table)


def test_results_and_settings_have_them_too(trained: Path) -> None:
    rows = json.loads((trained / "results.json").read_text())
    found = {
        (row["task"], row["space"], row["metric"].removesuffix("average_precision")): row["value"]
        for row in rows
        if (row["model"], row["split"]) == ("shared_and_own", "test") and row["metric"].endswith("average_precision")
    }
    whole = {(task, "impressions", "") for task in ("click", "like", "buy")}
    after = {(task, "after click", f"{score}_") for task in ("like", "buy") for score in ("conditional", "marginal")}
    assert set(found) == whole | after
    assert min(found.values()) > 0.3
    (best,) = [row for row in rows if row["model"] == "shared_and_own" and row["metric"] == "mean_average_precision"]
    assert 0.5 < best["value"] < 1
    assert {row["dataset"] for row in rows} == {"shop"}
    config = json.loads((trained / "config.json").read_text())["shared_and_own"]
    assert (config["loss"], config["loss_args"]) == ("my_funnel.losses:Uncertainty", {"start": 0.1})
    assert config["embedding_dim"] == 8  # of the data set


def test_the_loss_learnt(trained: Path) -> None:
    """Its parameters are among the model's, and the optimizer has moved them."""
    numbers = {
        row["model"]: row["value"]
        for row in json.loads((trained / "results.json").read_text())
        if row["metric"] == "num_parameters"
    }
    fields, dim, tasks = 2, 8, 3
    tables = (1 + tasks) * (20 + 50) * dim
    towers = tasks * (2 * fields * dim * 16 + 16 + 16 + 1)
    assert numbers["shared_and_own"] == tables + towers + tasks
    history = [json.loads(line) for line in (trained / "shared_and_own" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["value"] for row in history if row["metric"] == "loss"]
    assert losses[-1] < losses[0]


def test_help_and_the_settings_of_the_package(folder: Path) -> None:
    told = torchrec_mtl(folder, "train", "--help", *LOSS).stdout
    assert "settings of shared_and_own" in told
    assert "model_args.tower_layer_sizes=[16] (list of int): hidden layers of each tower." in told
    assert "loss_args.start=0.1 (float): of every s_t." in told
    wrong = torchrec_mtl(folder, "train", "shared_and_own.model_args.tower_layer_size=[8]")
    assert wrong.returncode == 2
    assert "the nearest is 'model_args.tower_layer_sizes'" in wrong.stderr


@pytest.mark.verify
def test_a_comparison_takes_them_as_well(folder: Path) -> None:
    stages = ["--stages", "search,final,report", "--seeds", "1", "--protocol", "paper", "--workers", "1"]
    small = ["embedding_dim=4", "training.batch_size=200", "training.evaluations_per_epoch=1", *LOSS, BY_THE_METRIC]
    done = torchrec_mtl(folder, "compare", "--datasets", "my_funnel.data:SHOP", *stages, *small, models=OWN)
    assert done.returncode == 0, done.stderr
    page = (folder / "runs" / "compare" / "shop" / "report.html").read_text()
    for part in ("Shared and Own", "average precision", "my_funnel.losses:Uncertainty", "click -&gt; (like, buy)"):
        assert part in page


def test_a_launcher_finds_them_where_it_is_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    app = components.train("shared_and_own.model_args.tower_layer_sizes=[8]", models=OWN, dataset="my_funnel.data:SHOP")
    assert f"--models {OWN} --dataset my_funnel.data:SHOP" in app.roles[0].args[-1]
