"""Calibrates a trained run on the validation split, and shows what that changes on the test split.

Each p(step | step before) is corrected, and the corrected ones are multiplied, so p(child) <= p(parent) holds.
``torchrec-mtl calibrate runs/my_run --dataset FOLDER``; `predict` uses the calibration from then on.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch.distributed as dist

from torchrec_mtl.data.lists import Array
from torchrec_mtl.inference.calibration import METHODS, fit_calibration
from torchrec_mtl.jobs.command_line import Parser
from torchrec_mtl.jobs.evaluate import measure
from torchrec_mtl.jobs.loading import LoadedRun
from torchrec_mtl.jobs.results import aligned
from torchrec_mtl.jobs.scoring import (
    add_dataset,
    check_dataset,
    opened_run,
    parse_run,
    read_rows,
    run_parser,
    score,
    score_share,
)
from torchrec_mtl.metrics import METRICS
from torchrec_mtl.training.evaluation import Measurements

SHOWN = ("calibration", "normalized_entropy", "log_loss")


def parser() -> Parser:
    """The options."""
    options = run_parser("calibrate", __doc__)
    add_dataset(options)
    options.add_argument("--method", default="isotonic", choices=METHODS, help="(%(default)s)")
    return options


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked before the run is read; raises `InputError` if it is wrong."""
    args = parse_run(parser(), argv)
    check_dataset(args)
    return args


def calibrate(args: argparse.Namespace, run: LoadedRun) -> tuple[Measurements, Measurements]:
    """Fits and stores the calibration; returns the measurements of the test split before and after."""
    tasks, funnel = run.schema.tasks, run.schema.tasks.funnel
    first = slice(len(funnel))
    _, valid = read_rows(args, run, "valid")
    scored = score(run.model, valid, run.device, args.batch_size)
    weights = None if scored.weights is None else scored.weights[:, first]
    calibration = fit_calibration(scored.logits[:, first], scored.labels[:, first], funnel, args.method, weights)
    _, test = read_rows(args, run, "test")
    before = score_share(run.model, test, run.device, args.batch_size)
    calibrated = _logits(calibration.apply(before.logits[:, first]))
    after = replace(before, logits=np.concatenate([calibrated, before.logits[:, len(funnel) :]], axis=1))
    metrics = {name: METRICS[name] for name in SHOWN}
    measured = [measure(each, tasks, metrics) for each in (before, after)]
    if dist.get_rank() == 0:
        calibration.save(run.folder)
    return measured[0], measured[1]


def table(before: Measurements, after: Measurements) -> str:
    """The shown metrics of every task and space, before and after."""
    values = [{(r["task"], r["space"], r["metric"]): r["value"] for r in rows} for rows in (before, after)]
    spaces = dict.fromkeys((row["task"], row["space"]) for row in before if row["metric"] in SHOWN)
    cells = [["task", "space", *(f"{METRICS[name].title}, before -> after" for name in SHOWN)]]
    for task, space in spaces:
        pairs = [[each[task, space, name] for each in values] for name in SHOWN]
        cells.append([task, space, *(f"{old:.4f} -> {new:.4f}" for old, new in pairs)])
    return "\n".join(aligned(cells))


def _logits(probabilities: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.clip(np.log(probabilities) - np.log1p(-probabilities), -80, 80)


def main(argv: Sequence[str] | None = None) -> int:
    """Calibrates the run, prints a table, and returns status 0.

    Raises:
        InputError: if the user made a mistake, or a step has no positives or no negatives to calibrate with.
    """
    args = parse(argv)
    with opened_run(args) as run:
        before, after = calibrate(args, run)
        if dist.get_rank() == 0:
            print(f"{run.folder}: {args.method}, fitted on the validation split; the test split, before and after:\n")
            print(table(before, after))
    return 0
