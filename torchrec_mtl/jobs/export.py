"""Exports a trained run as a package that scores rows without the training code; refuses if it scores differently.

``torchrec-mtl export runs/my_run --dataset FOLDER --output PACKAGE``
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchrec_mtl.data import MultiTaskBatch, Split
from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.stream_files import is_uri
from torchrec_mtl.data.table.drift import FieldCounts, added, count_encoded
from torchrec_mtl.errors import InputError, TrainingError
from torchrec_mtl.inference.package import Package, export_package
from torchrec_mtl.inference.package.load import arguments_of
from torchrec_mtl.inference.package.manifest import PROCESSORS, this_processor
from torchrec_mtl.inference.package.reference import Reference
from torchrec_mtl.inference.package.tables import TABLE_TYPES
from torchrec_mtl.inference.values import largest_difference
from torchrec_mtl.jobs.command_line import Parser
from torchrec_mtl.jobs.loading import DATA_FOLDER, LoadedRun
from torchrec_mtl.jobs.results import aligned
from torchrec_mtl.jobs.scoring import (
    add_dataset,
    check_dataset,
    opened_run,
    parse_run,
    read_rows,
    run_parser,
    score,
)
from torchrec_mtl.metrics import auc

GOLDEN_ROWS = 64
COMPARED_ROWS = 100_000  # at most, of the validation split
LARGEST_AUC_LOSS = 5e-4
_EXACT = 1e-5  # of scores with tables in fp32


def parser() -> Parser:
    """The options."""
    options = run_parser("export", __doc__)
    add_dataset(options)
    options.add_argument("--output", required=True, help="folder of the package, a new one")
    options.add_argument(
        "--table-type", default="int8", choices=list(TABLE_TYPES), help="type of the tables' rows (%(default)s)"
    )
    options.add_argument(
        "--march",
        default=this_processor(),
        choices=list(PROCESSORS),
        help="processors that the package is for (this machine's, %(default)s)",
    )
    options.add_argument(
        "--user-fields",
        default="",
        help="fields of a user, separated by commas, to score the candidates of one user (none)",
    )
    return options


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked before the run is read; raises `InputError` if it is wrong."""
    args = parse_run(parser(), argv)
    check_dataset(args)
    if is_uri(args.dataset):
        raise InputError(
            f"`dataset` (={args.dataset.split('?')[0]!r}) must be a folder, in which rows can be looked up"
        )
    return args


def export(args: argparse.Namespace, run: LoadedRun) -> list[str]:
    """Exports the run; returns what to print: sizes, and how far the package is from the run on the validation split.

    Raises:
        TrainingError: if the package is too far from the run, or the compiled code from the model.
    """
    _, valid = read_rows(args, run, "valid")
    assert isinstance(valid, Split)  # of a folder
    rows = np.arange(min(len(valid), COMPARED_ROWS))
    logits = score(run.model, valid, run.device, args.batch_size).logits[rows]
    predictor = run.predictor()
    scores = predictor.scores(logits)
    found: list[str] = []

    def accept(package: Package) -> None:
        found.extend(_compare(package, valid, rows, scores, args))

    with tempfile.TemporaryDirectory() as temporary:
        counts = _count_fields(run, valid, rows, args.batch_size)
        reference = Reference.of(predictor.from_logits(logits).marginal, run.schema.tasks, counts).save(Path(temporary))
        export_package(
            run.model,
            run.schema.tasks,
            args.output,
            valid.batch(torch.arange(min(len(valid), GOLDEN_ROWS))),
            table_type=args.table_type,
            unknown_rows={f.name: f.unknown_row for f in run.schema.fields if f.unknown_row is not None},
            calibration=run.calibration,
            march=args.march,
            user_keys=[name for name in args.user_fields.split(",") if name],
            beside=(*sorted((run.folder.parent / DATA_FOLDER).iterdir()), reference),
            accept=accept,
        )
    return found


def _count_fields(run: LoadedRun, valid: Split, rows: Array, batch_size: int) -> dict[str, FieldCounts]:
    if run.encoder is None:
        return {name: FieldCounts(total, 0, unknown, ()) for name, (unknown, total) in valid.num_unknown.items()}
    encoder = run.encoder
    return reduce(added, (count_encoded(encoder, batch) for batch in _batches(valid, rows, batch_size)))


def _batches(split: Split, rows: Array, batch_size: int) -> Iterator[MultiTaskBatch]:
    return (
        split.batch(torch.from_numpy(rows[start : start + batch_size])) for start in range(0, len(rows), batch_size)
    )


def _compare(package: Package, valid: Split, rows: Array, scores: Array, args: argparse.Namespace) -> list[str]:
    manifest = package.manifest
    given = (arguments_of(b, manifest.keys, manifest.is_weighted) for b in _batches(valid, rows, args.batch_size))
    packaged = torch.cat([package.run(each) for each in given]).numpy()
    difference = largest_difference(torch.from_numpy(packaged), torch.from_numpy(scores), manifest.tasks)
    cells = [["task", "AUC of the run", "of the package", "difference"]]
    worst = 0.0
    labels = torch.from_numpy(np.asarray(valid.arrays["labels"][rows]))
    for task, name in enumerate(manifest.tasks.funnel):
        aucs = [auc(_tensor(each[:, task]), labels[:, task]) for each in (scores, packaged)]
        cells.append([name, *(f"{each:.4f}" for each in aucs), f"{aucs[1] - aucs[0]:+.5f}"])
        worst = max(worst, abs(aucs[1] - aucs[0])) if aucs[0] == aucs[0] else worst
    size = sum(file.stat().st_size for file in package.folder.iterdir())
    lines = [
        f"{size / 2**20:,.1f} MiB, tables in {manifest.table_type}, for {manifest.march}",
        f"scores of {len(rows):,} rows of the validation split differ by at most {difference:.2g}",
        *aligned(cells),
    ]
    if manifest.table_type == "fp32" and difference > _EXACT:
        raise TrainingError(
            f"scores of the package must be within {_EXACT} of the run's, but differ by {difference:.2g}"
        )
    if worst > LARGEST_AUC_LOSS:
        rule = f"must be within {LARGEST_AUC_LOSS} of the run's, but differs by {worst:.5f}"
        raise TrainingError(
            f"AUC of the package, with tables in {manifest.table_type}, {rule}; take another `table_type`"
        )
    return lines


def _tensor(values: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).double()


def main(argv: Sequence[str] | None = None) -> int:
    """Exports the run, prints how far the package is from it, and returns status 0.

    Raises:
        InputError: if the user made a mistake.
        TrainingError: if the package does not score as the run.
    """
    args = parse(argv)
    with opened_run(args) as run:
        print(f"{run.folder}: compiling, which takes a minute", flush=True)
        lines = export(args, run)
        print(*lines, f"package: {args.output}", sep="\n")
    return 0
