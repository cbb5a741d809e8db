"""Prepares a public data set from its raw files, once; ``--dataset FOLDER`` of the other jobs then reads it.

``torchrec-mtl prepare ali_ccp --raw DOWNLOAD --output FOLDER``; ``--help`` lists the data sets.
"""

import argparse
from collections.abc import Sequence

from torchrec_mtl.data.raw.preparation import read_findings
from torchrec_mtl.errors import check_positive_share, redacted
from torchrec_mtl.jobs.command_line import REDACT_HELP, Parser
from torchrec_mtl.jobs.datasets import DATASETS, StageBars
from torchrec_mtl.jobs.parameters import parameters

FROM_RAW = {name: dataset.from_raw for name, dataset in DATASETS.items() if dataset.from_raw is not None}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line: ``dataset``, ``raw``, ``output``, and ``options``, the data set's own arguments.

    Raises:
        InputError: if it is wrong.
    """
    parser = Parser(prog="torchrec-mtl prepare", description=__doc__)
    datasets = parser.add_subparsers(dest="dataset", metavar="DATASET", required=True, help=f"one of {list(FROM_RAW)}")
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
    given = {path: getattr(args, path) for path in known[args.dataset]}
    args.options = {path: known[args.dataset][path].parse(text) for path, text in given.items() if text is not None}
    if "sample" in args.options:
        check_positive_share(sample=args.options["sample"])
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Prepares the data set, prints what was found, and returns status 0.

    Raises:
        InputError: if an argument or a raw file is wrong.
    """
    args = parse(argv)
    bars = StageBars()
    try:
        with redacted(args.redact):
            folder = FROM_RAW[args.dataset](args.raw, args.output, progress=bars, **args.options)
    finally:
        bars.close()
    print(*read_findings(folder), f"prepared: {folder}", sep="\n")
    return 0
