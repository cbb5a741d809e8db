"""Compares the AUC of the same models in other libraries and in ours: ``python -m benchmarks.peers.quality``.

Each model takes as many steps in each library, over five seeds, in the settings of `benchmarks.peers`; ours also with
autocast to bf16, from the same values and on the same rows. `oracle_auc` is what the true probabilities reach.
``--quick`` runs ours alone, and ``--libraries torchrec_mtl --settings "like for like"`` fp32 beside bf16 alone. Time is
not measured. An hour on two cores.
"""

import argparse
import os
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
import torch

from benchmarks import record
from benchmarks.peers.__main__ import LIBRARIES, OURS, candidates, interpreters, save_rows
from benchmarks.peers.common import MODELS, SETTINGS, Workload
from benchmarks.peers.worker import Library
from torchrec_mtl.data import Schema
from torchrec_mtl.datasets import oracle_auc
from torchrec_mtl.metrics import auc

SAME = {"plain", "replicated"}  # as sharded or as the peers, in other time


def measure_auc(work: Workload, rows: Path, *process: Any) -> list[record.Row]:
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
        about["by_seed"] = " ".join(f"{value:.5f}" for value in values)
        found.append({**library.row, **about, **record.spread(values, "AUC", digits=5)})
    return found


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES), help="all by default")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="all by default")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS, help="all by default")


def main() -> None:
    arguments = record.parse("peers_auc", __doc__, add_options)
    with record.Results(arguments.results) as results, tempfile.TemporaryDirectory() as temporary:
        pythons = interpreters([OURS] if arguments.quick else arguments.libraries, results)
        work, rows = save_rows(temporary, "quick" if arguments.quick else "auc")
        cases = [
            (each, setting, model)
            for setting, model in product(arguments.settings, [m for m in work.models if m in arguments.models])
            for each in candidates(pythons, setting, model, before=None)
            if each.variant not in SAME
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for found in pool.map(lambda case: measure_auc(work, rows, *case), cases):
                results.add(*found)


if __name__ == "__main__":
    main()
