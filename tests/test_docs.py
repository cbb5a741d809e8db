"""What README, CONTRIBUTING and the pages made from them say of the code is so."""

import csv
import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import stdev

import pytest
import torch
from torchrec import EmbeddingBagConfig

from torchrec_mtl.__main__ import JOBS
from torchrec_mtl.metrics import AUCS
from torchrec_mtl.systems import LOSSES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
ALL = "\n".join([README, CONTRIBUTING, *PAGES.values()])


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_the_readmes_output_is_part_of_the_whole():
    (table,) = re.findall(r"^```\n(complete_journey.*?)^```$", README, re.M | re.S)
    assert table in PAGES["first_run.md"]


def test_the_model_of_the_readme_is_built_as_it_stands():
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "train_model" in block]
    tables = [EmbeddingBagConfig(name="t", embedding_dim=16, num_embeddings=9, feature_names=["item"])]
    names = {"your_tables": tables}
    exec(code, names)
    assert names["train_model"].model.over_arch.towers.towers[2].output.bias.shape == torch.Size([1])
    assert names["ebc"].embedding_bags["t"].weight.device.type == "meta"


def test_what_is_named_is_there():
    for job in re.findall(r"torchrec-mtl (\w+)", ALL):
        assert job in (*JOBS, "JOB")
    for loss in re.findall(r"`loss=(\w+)`|^\| `(\w+)` \|.*\| .*truth", ALL, re.M):
        assert "".join(loss) in LOSSES
    for path in re.findall(r"`((?:torchrec_mtl|tests|benchmarks|examples)/[\w/.]+)`", ALL):
        assert (ROOT / path).exists() or "/my_" in path or path.endswith("prebuilt"), path
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)", ALL):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_the_plain_example_is_short_and_without_jobs_of_ours():
    text = (ROOT / "examples" / "train_dlrm.py").read_text()
    assert len(text.splitlines()) <= 120
    used = set(re.findall(r"from (torchrec_mtl[\w.]*) import", text))
    assert used == {"torchrec_mtl", "torchrec_mtl.losses", "torchrec_mtl.models", "torchrec_mtl.modules"}


def test_every_equation_has_its_line():
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "torchrec_mtl").rglob("*.py"))
    for paper, numbers in (("BPCM", range(2, 15)), ("TAFE", (*range(13, 26), 29))):
        assert [n for n in numbers if f"{paper} eq. ({n})" not in sources] == []


def aucs_in(text: str, caption: str) -> list[list[str]]:
    """The cells of a table of AUCs, its header first."""
    (table,) = re.findall(rf"^\| test AUC, [^|]*{caption} \|.*?(?=\n\n)", text, re.M | re.S)
    header, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    return [header, *lines]


def compared(folder: str = "complete_journey") -> list[dict[str, str]]:
    """The rows of a committed comparison."""
    with (ROOT / "benchmarks/results" / folder / "comparison.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_the_spread_over_seeds_is_that_of_the_runs():
    shown = ("single_task", "shared_bottom", "bpcm", "tafe")
    aucs = defaultdict(list)
    csv.field_size_limit(10**7)
    with (ROOT / "benchmarks/results/complete_journey/complete_journey_unread-0.2.csv").open() as stream:
        for line in csv.DictReader(stream):
            stage, model, *_ = line["run"].split("/")
            for row in json.loads(line["result"])["test"] if stage == "final" and model in shown else ():
                aucs[row["task"], row["metric"], model].append(row["value"])
    assert {len(values) for (*_, name, _), values in aucs.items() if name in AUCS} == {5}
    tasks = ("buy_category", "buy_type", "buy_line", "buy_multi")
    spaces = {
        "auc": "all impressions",
        "conditional_auc": "where the step before happened, conditional",
        "marginal_auc": "where the step before happened, marginal",
    }
    for metric, title in spaces.items():
        cells = []
        for task in tasks:
            spread = [stdev(aucs[task, metric, model]) for model in shown if (task, metric, model) in aucs]
            low, high = (f"{value:.4f}".lstrip("0") for value in (min(spread, default=0), max(spread, default=0)))
            cells.append(f" {low} to {high} " if spread else " ")
        assert f"| {title} |{'|'.join(cells)}|" in PAGES["first_run.md"]
        widest = max(max(values) - min(values) for (_, name, _), values in aucs.items() if name == metric)
        assert f"{widest:.4f}".lstrip("0") in PAGES["first_run.md"]


@pytest.mark.parametrize("name", ["complete_journey", "complete_journey_whole"])
def test_the_tables_of_a_comparison_are_its_rows(name):
    """Means and deviations over seeds, in bold the best of the column."""
    rows = {(row["title"], row["metric"], row["task"]): row for row in compared(name) if not row["ablation_of"]}
    text, checked = (ROOT / "benchmarks/results" / name / "README.md").read_text(), 0
    for caption, metric in (
        ("all impressions", "auc"),
        ("conditional", "conditional_auc"),
        ("marginal", "marginal_auc"),
    ):
        header, *lines = aucs_in(text, caption)
        for title, *cells in lines:
            for task, cell in zip(header[1:], cells, strict=True):
                row = rows[title, metric, task]
                mean, std = (f"{float(row[name]):.4f}".lstrip("0") for name in ("mean", "std"))
                best = max(float(r["mean"]) for (_, m, t), r in rows.items() if (m, t) == (metric, task))
                shown = f"**{mean}**" if f"{best:.4f}".lstrip("0") == mean else mean
                assert cell == f"{shown} ± {std}", (title, task, metric)
                checked += 1
    assert checked == len(rows)


def test_the_times_of_the_comparison_are_those_measured():
    folder = ROOT / "benchmarks/results/complete_journey"
    rows = json.loads((folder / "efficiency.json").read_text())["rows"]
    rows = sorted(rows, key=lambda row: row["train_ratio"])
    table = re.search(r"^\| times of Shared-Bottom's.*?\n\n", (folder / "README.md").read_text(), re.M | re.S)
    names = ("train_ratio", "infer_ratio", "parameter_mb")
    cells = [[row["title"], *(f"{row[name]:.2f}" for name in names)] for row in rows]
    assert table.group().splitlines()[2:-1] == [f"| {' | '.join(line)} |" for line in cells]
    assert rows[-2]["title"] == "BPCM"


def test_how_it_is_shared_matters_as_little_as_is_said():
    means = defaultdict(dict)
    for row in compared():
        if row["metric"] == "auc" and not row["ablation_of"]:
            means[row["task"]][row["model"]] = float(row["mean"])
    level = ("shared_bottom", "omoe", "mmoe", "mmoe_dselect_k", "adatt", "ple", "pepnet", "aitm")
    assert all(max(of_task.values()) - of_task[model] <= 0.0008 for of_task in means.values() for model in level)
    assert all(max(of_task.values()) - of_task["mmoe"] <= 0.0004 for of_task in means.values())
    for page in ("docs/which_model.md", "benchmarks/results/complete_journey/README.md"):
        text = " ".join((ROOT / page).read_text().split())
        assert "are within .0008 of the best" in text
        assert "is above it by more than .0004" in text


def test_what_five_times_the_rows_change_is_as_said():
    whole, sample = (
        {(row["model"], row["metric"], row["task"]): float(row["mean"]) for row in compared(folder)}
        for folder in ("complete_journey_whole", "complete_journey")
    )
    tasks = ("buy_category", "buy_type", "buy_line", "buy_multi")
    networks = {model for model, *_ in whole} - {"lightgbm", "logistic_regression"}
    networks = {model for model in networks if not model.endswith("_by_steps")}
    gains = {model: [whole[model, "auc", task] - sample[model, "auc", task] for task in tasks] for model, *_ in whole}
    assert 0.0022 <= min(gains["lightgbm_by_steps"]) <= max(gains["lightgbm_by_steps"]) < 0.0037
    assert max(max(gains[model]) for model in networks) < 0.0019
    assert len([model for model in networks if sum(gain < 0 for gain in gains[model]) > 1]) == 10
    last = {model: whole[model, "conditional_auc", "buy_multi"] for model, *_ in whole}
    passing = [model for model in networks if last[model] > last["logistic_regression_by_steps"]]
    assert (len(networks), len(passing)) == (16, 11)
    for task in tasks:
        auc = {model: whole[model, "auc", task] for model in networks}
        assert abs(auc["bpcm"] - auc["shared_bottom"]) < 0.0007
        assert max(auc["tafe"], auc["mmoe"]) < auc["shared_bottom"]
        named = ("ple", "omoe", "aitm", "pepnet", "sluice", "cross_stitch", "mmoe_dselect_k")
        assert max(auc[model] for model in named) - min(auc[model] for model in named) < 0.0019
    for task, best in (("buy_type", "dcmt"), ("buy_line", "escm2_dr")):
        assert max(networks, key=lambda model: whole[model, "conditional_auc", task]) == best


def test_the_readmes_means_are_those_of_the_comparison():
    rows = {(row["title"], row["task"]): row for row in compared() if row["metric"] == "auc"}
    header, *lines = aucs_in(README, "all impressions")
    assert len(lines) == 5
    for title, *cells in lines:
        of_title = [rows[title, task] for task in header[1:]]
        assert cells == [f"{float(row['mean']):.4f} ± {float(row['std']):.4f}" for row in of_title]
