"""What README, CONTRIBUTING and the pages made from them say of the code is so."""

import csv
import re
from collections import defaultdict
from pathlib import Path
from statistics import stdev

import torch
from torchrec import EmbeddingBagConfig

from torchrec_mtl.__main__ import JOBS
from torchrec_mtl.systems import LOSSES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
ALL = "\n".join([README, CONTRIBUTING, *PAGES.values()])


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


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
        assert (ROOT / path).exists() or "/my_" in path, path
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


def test_the_spread_over_seeds_is_that_of_the_runs():
    shown = ("single_task", "shared_bottom", "bpcm", "tafe")
    aucs = defaultdict(list)
    with (ROOT / "benchmarks/results/complete_journey/results.csv").open() as stream:
        for row in csv.DictReader(stream):
            chosen = (row["stage"], row["split"], row["variant"], row["metric"]) == ("final", "test", "", "auc")
            if chosen and row["model"] in shown:  # these runs called the marginal AUC after a step "auc" too
                aucs[row["task"], row["space"] == "impressions", row["model"]].append(float(row["value"]))
    assert {len(values) for values in aucs.values()} == {5}
    tasks = ("buy_category", "buy_type", "buy_line", "buy_multi")
    for whole, title in ((True, "all impressions"), (False, "where the step before happened, marginal")):
        cells = []
        for task in tasks:
            spread = [stdev(aucs[task, whole, model]) for model in shown if (task, whole, model) in aucs]
            low, high = (f"{value:.4f}".lstrip("0") for value in (min(spread, default=0), max(spread, default=0)))
            cells.append(f" {low} to {high} " if spread else " ")
        assert f"| {title} |{'|'.join(cells)}|" in PAGES["first_run.md"]
        widest = max(max(values) - min(values) for (_, space, _), values in aucs.items() if space == whole)
        assert f"{widest:.4f}".lstrip("0") in PAGES["first_run.md"]
