"""Prepares a data set, once; ``--dataset FOLDER`` of the other jobs then reads it.

A public one from its raw files, as ``torchrec-mtl prepare ali_ccp --raw DOWNLOAD --output FOLDER``; or any table, as
``torchrec-mtl prepare table --declaration shop.py --output FOLDER``. ``--help`` lists the data sets.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from torchrec_mtl.data.raw.bad_rows import POLICIES, check_policy
from torchrec_mtl.data.raw.preparation import read_findings
from torchrec_mtl.data.table import prepare_table
from torchrec_mtl.data.table.infer import infer_table
from torchrec_mtl.data.table.spark import prepare_table_on_spark
from torchrec_mtl.errors import InputError, check_choice, check_positive_share, redacted
from torchrec_mtl.files import make_folder, write_whole
from torchrec_mtl.jobs.command_line import REDACT_HELP, Parser
from torchrec_mtl.jobs.datasets import DATASETS, StageBars
from torchrec_mtl.jobs.declarations import find_table
from torchrec_mtl.jobs.parameters import parameters
from torchrec_mtl.jobs.show_table import show_table

FROM_RAW = {name: dataset.from_raw for name, dataset in DATASETS.items() if dataset.from_raw is not None}
TABLE = "table"  # the name of any declared table
ENGINES: dict[str, Callable[..., Path]] = {"polars": prepare_table, "spark": prepare_table_on_spark}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line: ``dataset``, ``output``, and the options of the data set.

    Of a public one, they are ``raw``, and ``options``, its own arguments; of a declared one, ``table``, and how.

    Raises:
        InputError: if it is wrong.
    """
    parser = Parser(prog="torchrec-mtl prepare", description=__doc__)
    names = [TABLE, *FROM_RAW]
    datasets = parser.add_subparsers(dest="dataset", metavar="DATASET", required=True, help=f"one of {names}")
    _add_table(datasets.add_parser(TABLE, help="any table: declared in a Python file, column by column"))
    known = {name: parameters(from_raw, "", {}, ["raw", "output", "progress"]) for name, from_raw in FROM_RAW.items()}
    for name, of_dataset in known.items():
        options = datasets.add_parser(name)
        options.add_argument("--raw", required=True, help="folder of the raw files, as they were downloaded")
        options.add_argument("--output", required=True, help="folder of the prepared data set")
        options.add_argument("--redact", action="store_true", help=REDACT_HELP)
        for parameter in of_dataset.values():
            description = f"{parameter.description} ({parameter.kind}; {parameter.default!r})".replace("%", "%%")
            options.add_argument(f"--{parameter.path.replace('_', '-')}", help=description)
    args = parser.parse(argv)
    if args.dataset == TABLE:
        _check_table(args)
        return args
    given = {path: getattr(args, path) for path in known[args.dataset]}
    args.options = {path: known[args.dataset][path].parse(text) for path, text in given.items() if text is not None}
    if "sample" in args.options:
        check_positive_share(sample=args.options["sample"])
    return args


def _add_table(options: argparse.ArgumentParser) -> None:
    what = options.add_mutually_exclusive_group(required=True)
    what.add_argument("--declaration", help="shop.py, which has a Table; shop.py:NAME; or package.module:NAME")
    what.add_argument("--infer", metavar="SOURCE", help="file, glob or folder of rows: write a declaration to edit")
    options.add_argument("--output", help="folder of the prepared data set; or, of --infer, the file to write")
    options.add_argument("--show", action="store_true", help="print what would be done, and write nothing")
    options.add_argument("--engine", default="polars", help=f"what prepares it: {' or '.join(ENGINES)} (%(default)s)")
    options.add_argument("--bad-rows", default="strict", help=f"for rows that break a rule, {' or '.join(POLICIES)}")
    options.add_argument("--bad-rows-limit", type=int, default=1000, help="largest number to put aside (%(default)s)")
    options.add_argument("--redact", action="store_true", help=REDACT_HELP)
    options.add_argument("--tasks", default="", help="of --infer: label columns, separated by commas (by their names)")
    options.add_argument("--rows", type=int, default=100_000, help="of --infer: rows to guess kinds from (%(default)s)")


def _check_table(args: argparse.Namespace) -> None:
    check_policy(args.bad_rows, args.bad_rows_limit)
    check_choice("engine", args.engine, list(ENGINES))
    if args.infer is not None and args.show:
        raise InputError("`show` must be with `declaration`: --infer SOURCE without --output prints the declaration")
    if args.infer is not None and args.output is not None and Path(args.output).exists():
        raise InputError(f"`output` (={args.output!r}) must be a new file, which --infer writes")
    if args.declaration is not None:
        if not args.show and args.output is None:
            raise InputError("`output` must name the folder of the prepared data set, or --show be given")
        args.table = find_table(args.declaration)


def main(argv: Sequence[str] | None = None) -> int:
    """Prepares the data set, prints what was found, and returns status 0.

    Raises:
        InputError: if an argument or a raw file is wrong.
    """
    args = parse(argv)
    if args.dataset == TABLE and args.infer is not None:
        tasks, bars = [name for name in args.tasks.split(",") if name], StageBars()
        try:
            text = infer_table(args.infer, tasks=tasks, num_rows=args.rows, progress=bars)
        finally:
            bars.close()
        if args.output is None:
            print(text, end="")
        else:
            make_folder(Path(args.output).parent, "output")
            write_whole(Path(args.output), text)
            print(f"written: {args.output}; torchrec-mtl prepare table --declaration {args.output} --show says more")
        return 0
    bars = StageBars()
    if args.dataset == TABLE and args.show:
        try:
            with redacted(args.redact):
                text = show_table(args.table, bars)
        finally:
            bars.close()
        print(text)
        return 0
    try:
        with redacted(args.redact):
            if args.dataset == TABLE:
                limits = {"bad_rows": args.bad_rows, "bad_rows_limit": args.bad_rows_limit}
                folder = ENGINES[args.engine](args.table, args.output, progress=bars, **limits)
            else:
                folder = FROM_RAW[args.dataset](args.raw, args.output, progress=bars, **args.options)
    finally:
        bars.close()
    print(*read_findings(folder), f"prepared: {folder}", sep="\n")
    return 0
