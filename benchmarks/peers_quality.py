"""Do our Shared-Bottom and MMoE reach the AUC that other libraries' do? ``python -m benchmarks.peers_quality``.

One synthetic funnel, the same rows in the same order, the same sizes, Adam 1e-3 on all parameters, three seeds. Each
library runs in an environment of its own, in two settings:

- like for like: tables, linear layers, loss and optimizer are drawn and stepped alike by `benchmarks.peers.common`;
- library default: initial values, loss, penalties and clipping are the library's own.

Gates are linear in both. Test AUCs go to ``benchmarks/results/peers_quality.csv``, a summary to the screen. It takes
about eight minutes on one core, and some more the first time, to install the libraries.
"""

import csv
import os
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import torch

from benchmarks.peers.common import BATCH_SIZE
from tests.peers.environment import REQUIREMENTS, python_with
from torchrec_mtl.data import Schema, SyntheticFunnel, oracle_auc, prepare_synthetic
from torchrec_mtl.metrics import auc

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "results" / "peers_quality.csv"
NUM_ROWS = {"train": 400_000, "valid": 1, "test": 100_000}
PROGRAMS = {"torchrec_mtl": "ours", "deepctr_torch": "deepctr", "fuxictr": "fuxi"}
MARGIN = 0.005


def save_rows(directory: Path, folder: Path) -> None:
    """The data set as plain arrays."""
    schema = Schema.load(directory)
    train, test = (pl.read_parquet(directory / f"{split}.parquet") for split in ("train", "test"))
    np.savez(
        folder / "rows.npz",
        train_ids=train.select(schema.field_names).to_numpy().astype(np.int64),
        train_labels=train.select(schema.tasks.names).to_numpy().astype(np.float32),
        test_ids=test.select(schema.field_names).to_numpy().astype(np.int64),
        sizes=[field.num_embeddings for field in schema.fields],
    )


def run_library(library: str, data: Path) -> Path:
    """Trains all its models; returns the folder of their scores."""
    python = sys.executable if library == "torchrec_mtl" else python_with(library)
    scores = data / library
    scores.mkdir()
    command = [python, HERE / "peers" / f"{PROGRAMS[library]}.py", data, scores]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return scores


def measure(library: str, scores: Path, directory: Path) -> list[dict]:
    """A row for each model, setting, seed, task and space."""
    test, tasks = pl.read_parquet(directory / "test.parquet"), Schema.load(directory).tasks
    labels, oracle, rows = test.select(tasks.names).to_torch(), oracle_auc(directory), []
    for file in sorted(scores.glob("*.npy")):
        run = dict(zip(("model", "setting", "seed"), file.stem.split(","), strict=True))
        of_run = torch.from_numpy(np.load(file))
        for t, task in enumerate(tasks):
            for space in tasks.spaces(task):
                kept = slice(None) if space == "impressions" else labels[:, t - 1] == 1
                aucs = {"auc": auc(of_run[kept, t], labels[kept, t]), "oracle_auc": oracle[task, space]}
                rounded = {name: round(value, 5) for name, value in aucs.items()}
                rows.append({"library": library, **run, "task": task, "space": space, **rounded})
    return rows


def summary(rows: list[dict]) -> pl.DataFrame:
    """Means over seeds, all impressions; and how much the library is above ours, for the task where it is most."""
    run = ["model", "setting", "library"]
    impressions = pl.DataFrame(rows).filter(space="impressions")
    means = impressions.pivot("task", index=run, values="auc", aggregate_function="mean", sort_columns=True)
    ours = means.filter(library="torchrec_mtl")
    above = [pl.col(task) - pl.col(f"{task}_right") for task in means.columns[len(run) :]]
    compared = means.join(ours, on=run[:2]).with_columns(above_ours=pl.max_horizontal(above))
    return compared.select(*means.columns, "above_ours").sort(run)


def main() -> None:
    funnel, rows = SyntheticFunnel(), []
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True).strip()
    with tempfile.TemporaryDirectory() as temporary:
        directory = prepare_synthetic(temporary, funnel, NUM_ROWS)
        save_rows(directory, Path(temporary))
        for library in PROGRAMS:
            print(f"training with {library}", flush=True)
            rows += measure(library, run_library(library, Path(temporary)), directory)
    versions = [f"torch=={torch.__version__}", *(REQUIREMENTS[peer][0] for peer in PROGRAMS if peer in REQUIREMENTS)]
    run = {
        "steps": NUM_ROWS["train"] // BATCH_SIZE,
        "versions": " ".join(versions),
        "date": date.today().isoformat(),
        "commit": commit,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *run])
        writer.writeheader()
        writer.writerows({**row, **run} for row in rows)
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_hide_column_data_types=True, tbl_hide_dataframe_shape=True):
        print(summary(rows).with_columns(pl.selectors.float().round(4)))
    print(f"`above_ours` must be at most {MARGIN}; {RESULTS.relative_to(ROOT)} has {len(rows)} rows")


if __name__ == "__main__":
    main()
