"""Compares speed and memory of the same models in other libraries and in ours: ``python -m benchmarks.peers``.

torch-rechub, DeepCTR-Torch and FuxiCTR each run in an environment of their own, which is installed on first use. All
libraries get the same synthetic rows, sizes, batches, threads and memory allocator, in three settings:

- like for like: the same initial distribution, Adagrad for tables and Adam for the rest. The peers use torch's
  optimizers. Ours is run as its jobs run it (sharded: tables are stepped in the backward pass, to the same values), as
  a plain module with torch's optimizers, and with autocast to bf16, which no peer offers, where the processor has
  products in bf16.
- Adam on everything: all peers, and ours as a plain module, have torch's Adam for tables too, which steps all rows in
  every step; so do ours replicated. Sharded, ours steps the rows of a batch alone, which is another algorithm.
- library default: the library's own initial values, loss, penalties and optimizer. For this library, what the jobs do.

Gates are linear in all libraries, and FuxiCTR's models are built from its blocks: its wheel has no multi-task models.
In the first two settings, all must predict the same after one step from the same values before any is timed.

Speed is in thousand samples per second of CPU time. All take turns: `to_best_peer` and `to_before` are medians over
rounds of the ratio to the fastest peer's speed, and to that of the commit given by ``--before``, above 1 where this row
is faster. `product_share` is the rate of an inference's matrix products, in all of its time, as a share of that of one
large product. A library that fails has a row that says why. ``--quick`` runs ours alone. Half an hour on two cores,
plus the installation. `benchmarks.peers.quality` compares AUC after equal steps.
"""

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
import torch

from benchmarks import record
from benchmarks.peers.common import ADAM, DEFAULT, LIKE_FOR_LIKE, MODELS, SETTINGS, WORKLOADS, Workload
from benchmarks.peers.worker import PRODUCT, Candidate, Library
from tests.peers.environment import python_with
from torchrec_mtl.data import Schema
from torchrec_mtl.datasets import SyntheticFunnel, prepare_synthetic

OURS = "torchrec_mtl"
LIBRARIES = {OURS: MODELS, "torch_rechub": MODELS, "deepctr_torch": MODELS[:4], "fuxictr": MODELS[:2]}
VARIANTS = {
    LIKE_FOR_LIKE: ("sharded", "plain", "bf16"),
    ADAM: ("plain", "replicated", "sharded"),
    DEFAULT: ("sharded",),
}
TOLERANCE = 5e-4  # of probabilities: Adam magnifies the rounding of gradients near 0
TOLERANCES = {"bf16": 0.05}  # by variant


def save_rows(parent: str, name: str) -> tuple[Workload, Path]:
    """Saves a workload's rows as a prepared data set; returns the workload, and the file that a `Worker` reads."""
    work = WORKLOADS[name]
    num_rows = {"train": work.num_train, "valid": 1, "test": work.num_test}
    directory = prepare_synthetic(parent, SyntheticFunnel(work.base_rates, work.field_sizes), num_rows)
    schema, file = Schema.load(directory), directory / f"{name}.npz"
    train, test = (pl.read_parquet(directory / f"{split}.parquet") for split in ("train", "test"))
    train_ids, test_ids = (rows.select(schema.field_names).to_numpy().astype(np.int64) for rows in (train, test))
    train_labels = train.select(schema.tasks.names).to_numpy().astype(np.float32)
    np.savez(file, train_ids=train_ids, train_labels=train_labels, test_ids=test_ids)  # in this order
    return work, file


def check_alike(libraries: Sequence[Library]) -> None:
    """Stops unless all libraries predict the same as the first after one step from the same values."""
    predicted = []
    for library in libraries:
        library.ask("build", fill=True)
        library.ask("train", steps=1)
        predicted.append(np.array(library.ask("probabilities", rows=1000), dtype=float))
    if libraries[0].failure:
        sys.exit(f"error: {libraries[0].row['model']}: ours failed: {libraries[0].failure}")
    assert predicted[0].std(0).min() > 10 * TOLERANCE, "predictions must depend on the ids"
    for library, probabilities in zip(libraries, predicted, strict=True):
        difference = np.abs(probabilities - predicted[0]).max()
        tolerance = TOLERANCES.get(library.row["variant"].partition(",")[0], TOLERANCE)
        if not library.failure and not difference < tolerance:
            name, model = library.row["library"], library.row["model"]
            sys.exit(f"error: {model}: {name}'s probabilities are {difference:.1e} from ours after an equal step")


def ratios(seconds: dict[Library, list[float]], each: Library) -> record.Row:
    """How fast ``each`` is beside the fastest peer, and beside itself before."""
    row = each.row
    peers = [of for of in seconds if of.row["library"] != OURS and not of.failure]
    before = [of for of in seconds if of.row["library"] == OURS and of.row["variant"] == f"{row['variant']}, before"]
    found = {}
    if peers:
        best = min(peers, key=lambda of: statistics.median(seconds[of]))
        found["to_best_peer"] = round(record.ratio(seconds[best], seconds[each]), 3)
    if row["library"] == OURS and before:
        found["to_before"] = round(record.ratio(seconds[before[0]], seconds[each]), 3)
    return found


def measure_speed(work: Workload, libraries: Sequence[Library], repeats: int) -> Iterator[record.Row]:
    """Yields rows for inference, training and memory of one model; ours is the first library."""
    for each in libraries:
        each.row["parameters"] = each.ask("build")
    flops = libraries[0].ask("flops") or math.nan
    turns = [("inference", size, size * batches) for size, batches in work.inference]
    turns.append(("training", work.batch_size, work.steps * work.batch_size))
    for measure, batch_size, rows in turns:
        calls: dict[Library | None, Callable[[], float]] = {
            each: partial(each.ask, "train", steps=work.steps)
            if measure == "training"
            else partial(each.ask, "infer", batch_size=batch_size, batches=rows // batch_size)
            for each in libraries
        }
        calls[None] = partial(libraries[0].ask, "multiply")
        seconds = record.in_turns(calls, repeats, timer=lambda turn: turn() or math.nan)
        rate = [2 * math.prod(PRODUCT) / of_product for of_product in seconds.pop(None)]
        for each in libraries:
            if each.failure:
                continue
            speeds = [rows / 1e3 / second for second in seconds[each]]
            about = {"measure": measure, "batch_size": batch_size, **ratios(seconds, each)}
            if measure == "inference":
                rates = [flops * rows / second for second in seconds[each]]
                about["product_share"] = round(record.ratio(rates, rate), 3)
            yield {**each.row, **about, **record.spread(speeds, "thousand samples / CPU s")}
    for each in libraries:
        for measure, value in (each.ask("memory") or {}).items():
            yield {**each.row, "measure": measure, **record.spread([value], "MiB", digits=0)}
        if each.failure:
            yield {**each.row, "error": each.failure}


def interpreters(names: Iterable[str], results: record.Results) -> dict[str, Path]:
    """Returns the libraries' interpreters; adds a row for each library that cannot be installed."""
    found = {}
    for name in names:
        try:
            found[name] = Path(sys.executable) if name == OURS else python_with(name)
        except Exception as error:
            results.add({"library": name, "versions": "", "error": f"not installed: {error}"})
    return found


def tree_of(commit: str, folder: Path) -> Path:
    """The package as it was at ``commit``, with these benchmarks beside it and its kernels built."""
    archive = ["git", "-C", record.ROOT, "archive", commit, "torchrec_mtl"]
    with subprocess.Popen(archive, stdout=subprocess.PIPE) as git:
        subprocess.run(["tar", "-x", "-C", folder], stdin=git.stdout, check=True)
    (folder / "benchmarks").symlink_to(record.ROOT / "benchmarks")
    subprocess.run([sys.executable, "-m", "torchrec_mtl.ops.build"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder


def candidates(pythons: dict[str, Path], setting: str, model: str, before: Path | None) -> list[Candidate]:
    """All that take turns, ours first."""
    ours = [Candidate(OURS, pythons[OURS], variant) for variant in VARIANTS[setting]]
    if before is not None:
        kept = {LIKE_FOR_LIKE: ("sharded", "plain"), ADAM: ("plain", "replicated"), DEFAULT: ("sharded",)}
        ours += [Candidate(OURS, pythons[OURS], variant, before) for variant in kept[setting]]
    names = [name for name in pythons if name != OURS and model in LIBRARIES[name]]
    return ours + [Candidate(name, pythons[name]) for name in names]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--before", metavar="COMMIT", help="also run the library as it was at this commit")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="all by default")


def main() -> None:
    arguments = record.parse("peers", __doc__, add_options)
    with record.Results(arguments.results) as results, tempfile.TemporaryDirectory() as temporary:
        pythons = interpreters([OURS] if arguments.quick else LIBRARIES, results)
        work, rows = save_rows(temporary, "quick" if arguments.quick else "speed")
        before = None
        if arguments.before:
            before = Path(temporary) / "before"
            before.mkdir()
            tree_of(arguments.before, before)
        models = [model for model in work.models if model in arguments.models]
        for setting, model in product(SETTINGS, models):
            print(f"{setting}, {model}", flush=True)
            with ExitStack() as stack:
                chosen = candidates(pythons, setting, model, before)
                if not torch.cpu._is_avx512_bf16_supported():
                    chosen = [each for each in chosen if each.variant != "bf16"]
                libraries = [stack.enter_context(Library(rows, each, setting, model)) for each in chosen]
                if setting != DEFAULT:
                    check_alike(libraries)
                for row in measure_speed(work, libraries, arguments.repeats or work.repeats):
                    results.add(row)


if __name__ == "__main__":
    main()
