"""How fast, lean and good are the same models in other libraries beside ours? ``python -m benchmarks.peers``.

torch-rechub, DeepCTR-Torch and FuxiCTR run each in an environment of its own, which is installed the first time, on the
same synthetic funnels, with the same sizes, batches, threads, memory allocator and rows, in three settings:

- like for like: initial values are drawn alike; Adagrad steps the tables, Adam the rest. The peers do it with torch's
  optimizers, ours with TorchRec's Adagrad, which steps the rows that a batch has in the backward pass: the same values;
- Adam on everything: likewise, but Adam steps tables too, which all do with the same torch optimizer: it goes over all
  rows in every step, and most of a step is that;
- library default: initial values, loss, penalties and optimizer are the library's own. Ours are the jobs': row-wise
  Adagrad steps the tables.

Torch's optimizers are the fused ones in the first two. Gates are linear in all. FuxiCTR's wheel has no multi-task
models: its rows are of models put together of its blocks. In the first two it is checked, before anything is timed,
that all libraries predict the same after a step from the same values.

- Speed: 23 fields of 10,000 to 100,000 ids. A process a library, which take turns of some steps; samples per second of
  the process's CPU time, and the peak memory of the process. `ours_to_this` is a median over rounds.
- AUC: 10 fields of 10 to 20,000 ids; test AUC after equal steps, three seeds, beside the true probabilities' AUC.

A library that fails has rows that say why. ``--quick`` installs nothing and runs ours alone. Speed takes ten minutes on
two cores, AUC forty more, and the first time it takes some to install the libraries.
"""

import math
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch

from benchmarks import record
from benchmarks.peers.common import DEFAULT, SETTINGS
from benchmarks.peers.summary import summary
from benchmarks.peers.turns import Library
from benchmarks.peers.work import OURS, QUALITY, QUICK, SPEED, Work
from benchmarks.record import Row
from tests.peers.environment import REQUIREMENTS, python_with
from torchrec_mtl.data import Schema, oracle_auc
from torchrec_mtl.metrics import auc

TOLERANCE = 5e-4  # of probabilities: Adam magnifies the rounding of gradients near 0


@dataclass(frozen=True)
class Installed:
    """A library that answers: its interpreter, the models it has, its versions, and what to know of it."""

    python: Path
    models: tuple[str, ...]
    versions: str
    note: str


def find(names: list[str], folder: Path, rows: list[Row]) -> dict[str, Installed]:
    """The libraries that can be imported; ``rows`` gets why another one cannot."""
    found = {}
    for name in names:
        try:
            python = Path(sys.executable) if name == OURS else python_with(name)
        except Exception as error:
            rows.append({"library": name, "error": f"not installed: {error}"})
            continue
        with Library(name, python, folder) as library:
            about = library.ask("about")
        if library.failure:
            rows.append({"library": name, "error": library.failure})
        else:
            found[name] = Installed(python, tuple(about["models"]), about["versions"], about["note"])
    return found


def check_alike(libraries: list[Library], model: str, setting: str, folder: Path) -> None:
    """After a step from the same values, all predict what ours do."""
    predicted = {}
    for library in libraries:
        file = folder / f"{library.name}.npy"
        library.ask("build", model=model, setting=setting, fill=True)
        library.ask("train", steps=1)
        library.ask("probabilities", file=str(file), rows=1000)
        if not library.failure:
            predicted[library.name] = np.load(file)
    assert predicted[OURS].std(0).min() > 10 * TOLERANCE, "predictions must depend on the ids"
    for name, probabilities in predicted.items():
        difference = np.abs(probabilities - predicted[OURS]).max()
        if not difference < TOLERANCE:
            raise SystemExit(f"{model}: {name}'s probabilities are {difference:.1e} from ours after an equal step")


def measure_speed(speed: Work, model: str, setting: str, found: dict[str, Installed], folder: Path) -> list[Row]:
    """Rows of one model: training, inference and memory of each library that has it."""
    with ExitStack() as stack:
        has = {name: library for name, library in found.items() if model in library.models}
        libraries = [stack.enter_context(Library(name, each.python, folder)) for name, each in has.items()]
        if setting != DEFAULT:
            check_alike(libraries, model, setting, folder)
        parameters = {each.name: each.ask("build", model=model, setting=setting) for each in libraries}
        seconds = {}
        for measure, do in (("training", "train"), ("inference", "infer")):
            turns = {each.name: partial(each.ask, do, steps=speed.steps) for each in libraries}
            seconds[measure] = record.in_turns(turns, speed.repeats, timer=lambda turn: turn() or math.nan)
        rows = []
        for each in libraries:
            about = {"library": each.name, "setting": setting, "model": model, "parameters": parameters[each.name]}
            peak = each.ask("memory")
            if each.failure:
                rows.append({**about, "error": each.failure})
                continue
            for measure, of_all in seconds.items():
                own = of_all[each.name]
                speeds = [speed.steps * speed.sizes.batch_size / 1e3 / second for second in own]
                ours_to_this = round(record.ratio(own, of_all[OURS]), 3)
                unit = "thousand samples / CPU s"
                rows.append({**about, "measure": measure, "ours_to_this": ours_to_this, **record.spread(speeds, unit)})
            for measure, value in zip(("peak memory", "memory after imports"), peak, strict=True):
                rows.append({**about, "measure": measure, **record.spread([value], "MiB", digits=0)})
        return rows


def measure_auc(quality: Work, directory: Path, model: str, name: str, python: Path) -> list[Row]:
    """Rows of one library's model: a setting, task and sample space each, over seeds."""
    test, tasks = pl.read_parquet(directory / "test.parquet"), Schema.load(directory).tasks
    labels, oracle = test.select(tasks.names).to_torch(), oracle_auc(directory)
    file, rows = directory / f"{name},{model}.npy", []
    with Library(name, python, directory) as library:
        for setting in SETTINGS:
            about = {"library": name, "setting": setting, "model": model}
            aucs: dict[tuple[str, str], list[float]] = {}
            for seed in range(quality.seeds):
                library.ask("build", model=model, setting=setting, seed=seed)
                library.ask("train", steps=quality.num_rows["train"] // quality.sizes.batch_size)
                library.ask("probabilities", file=str(file), rows=len(test))
                if library.failure:
                    return [*rows, {**about, "error": library.failure}]
                scores = torch.from_numpy(np.load(file))
                for t, task in enumerate(tasks.names[: scores.shape[1]]):
                    for space in tasks.spaces(task):
                        kept = slice(None) if space == "impressions" else labels[:, t - 1] == 1
                        aucs.setdefault((task, space), []).append(auc(scores[kept, t], labels[kept, t]))
            for (task, space), values in aucs.items():
                about |= {"measure": "test AUC", "task": task, "space": space}
                about["oracle_auc"] = round(oracle[task, space], 5)
                rows.append({**about, **record.spread(values, "AUC", digits=5)})
    return rows


def measure_aucs(quality: Work, found: dict[str, Installed], directory: Path) -> list[Row]:
    """Rows of all models and libraries; time is not measured, so as many at once as there are cores."""
    has = [(model, name) for model in quality.models for name, each in found.items() if model in each.models]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        run = partial(measure_auc, quality, directory)
        return [row for rows in pool.map(lambda of: run(*of, found[of[1]].python), has) for row in rows]


def main() -> None:
    arguments = record.parse("peers", __doc__)
    circumstances = record.begin()
    del circumstances["versions"]  # each library has its own
    speed, quality, peers = SPEED, QUALITY, list(REQUIREMENTS)
    if arguments.quick:
        speed, quality = QUICK, QUICK
        print(f"left out: {peers}")
        peers = []
    speed = replace(speed, repeats=arguments.repeats or speed.repeats)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = speed.save(temporary)
        found = find([OURS, *peers], folder, rows)
        for setting in SETTINGS:
            for model in speed.models:
                print(f"speed: {model}, {setting}", flush=True)
                rows += measure_speed(speed, model, setting, found, folder)
        print("AUC", flush=True)
        rows += measure_aucs(quality, found, quality.save(temporary))
    for row in rows:
        library = found.get(row["library"])
        row |= {"note": library.note, "versions": library.versions} if library else {}
    record.write(arguments.results, rows, circumstances)
    print(summary(rows))


if __name__ == "__main__":
    main()
