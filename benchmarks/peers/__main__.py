"""Compares speed, memory and AUC of the same models in other libraries and in ours: ``python -m benchmarks.peers``.

torch-rechub, DeepCTR-Torch and FuxiCTR each run in an environment of their own, which is installed on first use. All
libraries get the same synthetic rows, sizes, batches, threads and memory allocator, in three settings:

- like for like: the same initial distribution, Adagrad for tables and Adam for the rest. The peers use torch's
  optimizers. Ours uses TorchRec's Adagrad, which steps a batch's rows in the backward pass, to the same values.
- Adam on everything: the same, but with torch's Adam for tables too, which steps all rows in every step.
- library default: the library's own initial values, loss, penalties and optimizer. For this library, what the jobs do.

Gates are linear in all libraries, and FuxiCTR's models are built from its blocks: its wheel has no multi-task models.
In the first two settings, all libraries must predict the same after one step from the same values before any is timed.

Speed is in samples per second of CPU time. Libraries take turns, and `ours_to_this` is the median over rounds. AUC is
on test rows after equal steps, and `oracle_auc` is what the true probabilities reach. A library that fails has a row
that says why. ``--quick`` runs ours alone. On two cores, speed takes ten minutes and AUC forty, plus the installation.
"""

import math
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import chain, product
from pathlib import Path

import numpy as np
import polars as pl
import torch

from benchmarks import record
from benchmarks.peers.common import DEFAULT, MODELS, SETTINGS, WORKLOADS, Workload
from benchmarks.peers.worker import Library
from tests.peers.environment import python_with
from torchrec_mtl.data import Schema
from torchrec_mtl.datasets import SyntheticFunnel, oracle_auc, prepare_synthetic
from torchrec_mtl.metrics import auc

OURS = "torchrec_mtl"
LIBRARIES = {OURS: MODELS, "torch_rechub": MODELS, "deepctr_torch": MODELS[:4], "fuxictr": MODELS[:2]}
TOLERANCE = 5e-4  # of probabilities: Adam magnifies the rounding of gradients near 0


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
        if not library.failure and not difference < TOLERANCE:
            name, model = library.row["library"], library.row["model"]
            sys.exit(f"error: {model}: {name}'s probabilities are {difference:.1e} from ours after an equal step")


def measure_speed(work: Workload, libraries: Sequence[Library], repeats: int) -> list[record.Row]:
    """Returns rows for training, inference and memory of one model; ours is the first library."""
    for each in libraries:
        each.row["parameters"] = each.ask("build")
    seconds = {}
    for measure, do in (("training", "train"), ("inference", "infer")):
        turns = {each: partial(each.ask, do, steps=work.steps) for each in libraries}
        seconds[measure] = record.in_turns(turns, repeats, timer=lambda turn: turn() or math.nan)
    rows = []
    for each in libraries:
        memory = each.ask("memory")
        if each.failure:
            rows.append({**each.row, "error": each.failure})
            continue
        for measure, of_all in seconds.items():
            speeds = [work.steps * work.batch_size / 1e3 / second for second in of_all[each]]
            about = {"measure": measure, "ours_to_this": round(record.ratio(of_all[each], of_all[libraries[0]]), 3)}
            rows.append({**each.row, **about, **record.spread(speeds, "thousand samples / CPU s")})
        for measure, value in memory.items():
            rows.append({**each.row, "measure": measure, **record.spread([value], "MiB", digits=0)})
    return rows


def measure_auc(work: Workload, rows: Path, *process: str | Path) -> list[record.Row]:
    """Returns a row for each task and sample space, over seeds; `Library` takes the other arguments."""
    test, tasks = pl.read_parquet(rows.with_name("test.parquet")), Schema.load(rows.parent).tasks
    labels, oracle = test.select(tasks.names).to_torch(), oracle_auc(rows.parent)
    aucs = defaultdict[tuple[str, str, str], list[float]](list)
    with Library(rows, *process) as library:
        for seed in range(work.seeds):
            library.ask("build", seed=seed)
            library.ask("train", steps=work.num_train // work.batch_size)
            scores = torch.tensor(library.ask("probabilities", rows=len(test)) or [[]])
            for t, task in enumerate(tasks.names[: scores.shape[1]]):
                aucs[task, "impressions", "auc"].append(auc(scores[:, t], labels[:, t]))
                for space in tasks.spaces(task)[1:]:
                    kept = labels[:, t - 1] == 1
                    quotient = scores[kept, t].double() / scores[kept, t - 1]
                    for name, score in (("conditional_auc", quotient), ("marginal_auc", scores[kept, t])):
                        aucs[task, space, name].append(auc(score, labels[kept, t]))
    if library.failure:
        return [{**library.row, "error": library.failure}]
    found = []
    for (task, space, name), values in aucs.items():
        measure = f"test {name.removesuffix('auc').replace('_', ' ')}AUC"
        about = {"measure": measure, "task": task, "space": space, "oracle_auc": round(oracle[task, space, name], 5)}
        found.append({**library.row, **about, **record.spread(values, "AUC", digits=5)})
    return found


def interpreters(names: Iterable[str], results: record.Results) -> dict[str, Path]:
    """Returns the libraries' interpreters; adds a row for each library that cannot be installed."""
    found = {}
    for name in names:
        try:
            found[name] = Path(sys.executable) if name == OURS else python_with(name)
        except Exception as error:
            results.add({"library": name, "versions": "", "error": f"not installed: {error}"})
    return found


def main() -> None:
    arguments = record.parse("peers", __doc__)
    with record.Results(arguments.results) as results, tempfile.TemporaryDirectory() as temporary:
        pythons = interpreters([OURS] if arguments.quick else LIBRARIES, results)
        speed, quality = ("quick", "quick") if arguments.quick else ("speed", "auc")
        work, rows = save_rows(temporary, speed)
        cases = [
            [(name, python, setting, model) for name, python in pythons.items() if model in LIBRARIES[name]]
            for setting, model in product(SETTINGS, work.models)
        ]
        for case in cases:
            *_, setting, model = case[0]
            print(f"speed: {setting}, {model}", flush=True)
            with ExitStack() as stack:
                libraries = [stack.enter_context(Library(rows, *process)) for process in case]
                if setting != DEFAULT:
                    check_alike(libraries)
                results.add(*measure_speed(work, libraries, arguments.repeats or work.repeats))
        work, rows = save_rows(temporary, quality)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # time is not measured here
            for found in pool.map(lambda process: measure_auc(work, rows, *process), chain(*cases)):
                results.add(*found)


if __name__ == "__main__":
    main()
