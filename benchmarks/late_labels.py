"""Measures how near the truth a model comes when purchases arrive late: ``python -m benchmarks.late_labels``.

The log is simulated, so that the true probability of a purchase within seven days is known; delays are exponential,
with a mean of half a day to six days by item. A model is trained on 14 days, as they are known at their end, and
predicts the day after. Without drift a conversion rate stays; with drift its logit moves by item, up or down, with a
standard deviation of .1 a day. The ways to train:

- ``ignoring``: what has not happened yet is a 0;
- ``waiting``: labels younger than seven days are masked (`Delay`, policy "mask");
- ``corrected``: first labels after a day and copies, with ES-DFM's weights (policy "correct", `DelayedLoss`);
- ``copies alone``: the same rows without the weights;
- ``clairvoyant``: the final labels, which nobody has at that time.

Figures are over the test rows: ``bias`` is the mean prediction over the mean truth, less 1; ``error`` the mean distance
from the truth over the mean truth; ``excess log loss`` the log loss less that of the truth, in millinats. They are
means over five seeds with their standard deviation; ``corrected is nearer`` counts the seeds in which that figure of
``corrected`` is nearer 0 than this way's. The default takes about three minutes on a core of one's own.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torchrec import EmbeddingBagCollection

from benchmarks import record
from tests.generators.late_labels import known_at, time_of, write_log
from torchrec_mtl import MultiTaskTrain, TaskChain
from torchrec_mtl.data import BatchLoader, read_split
from torchrec_mtl.data.table import Delay, Integers, Table, prepare_table
from torchrec_mtl.losses import CrossEntropyLoss, DelayedLoss
from torchrec_mtl.models import SharedBottom

DAYS, ROWS_PER_DAY, QUICK_ROWS_PER_DAY = 14, 10_000, 300
SEEDS, DRIFTS = 5, (0.0, 0.1)
BATCH_SIZE, EPOCHS, LEARNING_RATE = 1024, 3, 5e-3
MASK = Delay("buy", time="bought_at", window="7d")
CORRECT = Delay("buy", time="bought_at", window="7d", policy="correct", wait="1d")

# The delays of each way, its loss, and without delays the day at which its labels are read.
WAYS = {
    "ignoring": ((), CrossEntropyLoss, DAYS),
    "waiting": ((MASK,), CrossEntropyLoss, None),
    "corrected": ((CORRECT,), DelayedLoss, None),
    "copies alone": ((CORRECT,), CrossEntropyLoss, None),
    "clairvoyant": ((), CrossEntropyLoss, DAYS + 7),
}


def prepare(files: dict[str, str], way: str, folder: Path) -> Path:
    """Prepares the log as one of the ways has it."""
    delays, _, day = WAYS[way]
    source = {**files, "train": known_at(files["train"], day)} if day else files
    fields = [Integers("item", 40), Integers("segment", 5)]
    as_of = {"as_of": time_of(DAYS).isoformat()} if delays else {}
    table = Table("late", source, TaskChain(["click", "buy"]), fields, time="at", keep=["p"], delays=delays, **as_of)
    return prepare_table(table, folder)


def train(folder: Path, way: str, seed: int) -> torch.Tensor:
    """Trains on a prepared folder, and returns P(buy) of the test rows."""
    torch.manual_seed(seed)
    split, test = read_split(folder, "train"), read_split(folder, "test")
    tables = EmbeddingBagCollection(tables=split.schema.embedding_configs(embedding_dim=8))
    model = SharedBottom(tables, split.schema.tasks, bottom_layer_sizes=(32,), tower_layer_sizes=(16,))
    model.start_from_base_rates(split.base_rates())
    trained = MultiTaskTrain(model, WAYS[way][1](split.schema.tasks))
    optimizer = torch.optim.Adam(trained.parameters(), LEARNING_RATE)
    loader = BatchLoader(split, BATCH_SIZE, shuffle=True, seed=seed)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, EPOCHS * len(loader))
    for epoch in range(EPOCHS):
        loader.set_epoch(epoch)
        for batch in loader:
            loss, _ = trained(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        batches = BatchLoader(test, 4096)
        return torch.cat([model(b.dense_features, b.sparse_features)[:, 1] for b in batches]).double().sigmoid()


def figures(p: np.ndarray, f: np.ndarray) -> dict[str, float]:
    """How far predictions are from true probabilities."""
    excess = p * np.log(p / f) + (1 - p) * np.log((1 - p) / (1 - f))
    return {
        "bias": f.mean() / p.mean() - 1,
        "error": np.abs(f - p).mean() / p.mean(),
        "excess log loss": 1e3 * excess.mean(),
    }


def measure(seed: int, drift: float, rows_per_day: int) -> dict[str, dict[str, float]]:
    """Returns the figures of each way on one simulated log."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_log(folder, seed, DAYS, rows_per_day, drift)
        truth = pl.read_parquet(files["test"])["p"].to_numpy()
        for way in WAYS:
            prepared = prepare(files, way, folder / way)
            found[way] = figures(truth, train(prepared, way, seed).numpy())
    return found


def rows_of(drift: float, runs: list[dict[str, dict[str, float]]], about: record.Row) -> list[record.Row]:
    """Returns a row for each way and figure; with the number of seeds in which ``corrected`` is nearer the truth."""
    rows = []
    for way in WAYS:
        for figure in runs[0][way]:
            values = [run[way][figure] for run in runs]
            nearer = sum(abs(run["corrected"][figure]) < abs(run[way][figure]) for run in runs)
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            spread = {"mean": round(statistics.mean(values), 4), "standard_deviation": round(deviation, 4)}
            unit = "millinats" if figure == "excess log loss" else "share of the mean truth"
            key = {"drift": drift, "way": way, "figure": figure, **spread, "corrected is nearer": int(nearer)}
            rows.append({**key, **about, **record.spread(values, unit, 4)})
    return rows


def main() -> None:
    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--rows-per-day", type=int, help=f"rows of each of the {DAYS} days ({ROWS_PER_DAY})")

    arguments = record.parse("late_labels", __doc__, options)
    with record.Results(arguments.results) as results:
        seeds = arguments.repeats or (1 if arguments.quick else SEEDS)
        size = arguments.rows_per_day or (QUICK_ROWS_PER_DAY if arguments.quick else ROWS_PER_DAY)
        for drift in DRIFTS:
            runs = [measure(seed, drift, size) for seed in range(seeds)]
            results.add(*rows_of(drift, runs, {"rows_per_day": size}))


if __name__ == "__main__":
    main()
