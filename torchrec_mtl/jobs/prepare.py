"""Prepares a public data set from its raw files, once; ``--dataset FOLDER`` of the other programs then reads it.

``torchrec-mtl prepare ali_ccp --raw DOWNLOAD --output FOLDER``; ``--help`` lists the data sets.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from torchrec_mtl.data.ali_ccp import prepare_ali_ccp
from torchrec_mtl.data.ali_ccp.protocols import BROKEN_FUNNEL, PROTOCOLS
from torchrec_mtl.data.raw.bad_rows import POLICIES
from torchrec_mtl.data.raw.report import read_findings
from torchrec_mtl.data.taobao import prepare_taobao
from torchrec_mtl.jobs.arguments import Parser
from torchrec_mtl.training.monitor import progress_bar


class StageBars:
    """One progress bar a stage, in rows, with rows per second and the time left; the total is what the share says."""

    def __init__(self) -> None:
        self._stage = ""
        self._bar: tqdm[Any] | None = None

    def __call__(self, stage: str, rows: int, share: float) -> None:
        if stage != self._stage:
            self.close()
            self._stage, self._bar = stage, progress_bar(stage, total=rows, unit="rows")
        assert self._bar is not None
        self._bar.total = max(rows, round(rows / max(share, 1e-9)))
        self._bar.update(rows - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _ali_ccp(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    """Its own arguments; and what it does with them."""
    parser.add_argument("--protocol", default="aitm", choices=PROTOCOLS, help="fields and rules (%(default)s)")
    parser.add_argument(
        "--broken-funnel",
        default="",
        choices=BROKEN_FUNNEL,
        help="rows with a purchase and no click (as the protocol has it)",
    )
    parser.add_argument("--sample", type=float, default=1.0, help="share of the rows (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of valid's rows and the sample (%(default)s)")

    return _runner(prepare_ali_ccp, ("protocol", "broken_funnel", "sample", "seed"))


def _taobao(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    """Its own arguments; and what it does with them."""
    options: list[tuple[str, type, float, str]] = [
        ("history_length", int, 0, "last behaviours before an impression, as lists of categories and brands"),
        ("history_days", int, 7, "how long before it"),
        ("purchase_days", int, 0, "task purchase: bought by the user, of category and brand, so long after a click"),
        ("min_count", int, 1, "rows that an id must occur in"),
        ("sample", float, 1.0, "share of the users"),
        ("seed", int, 0, "of valid's rows and the sample"),
    ]
    for name, kind, default, told in options:
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=f"{told} (%(default)s)")
    return _runner(prepare_taobao, [name for name, *_ in options])


def _runner(prepare: Callable[..., Path], options: Sequence[str]) -> Callable[[argparse.Namespace], None]:
    """Calls ``prepare`` with ``options`` of the command line and tells what was found."""

    def run(args: argparse.Namespace) -> None:
        chosen = {name: getattr(args, name) for name in (*options, "bad_rows", "bad_rows_limit")}
        bars = StageBars()
        try:
            folder = prepare(args.raw, args.output, progress=bars, **chosen)
        finally:
            bars.close()
        print(*read_findings(folder), f"prepared: {folder}", sep="\n")

    return run


DATASETS = {"ali_ccp": _ali_ccp, "taobao": _taobao}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line.

    Raises:
        InputError: if it is wrong.
    """
    parser = Parser(prog="torchrec-mtl prepare", description=__doc__)
    datasets = parser.add_subparsers(metavar="DATASET", required=True, help=f"one of {list(DATASETS)}")
    for name, add_arguments in DATASETS.items():
        own = datasets.add_parser(name)
        own.add_argument("--raw", required=True, help="folder of the raw files, as they were downloaded")
        own.add_argument("--output", required=True, help="the prepared data set's own folder")
        own.add_argument("--bad-rows", default="strict", choices=POLICIES, help="refuse, or put aside (%(default)s)")
        own.add_argument("--bad-rows-limit", type=int, default=1000, help="how many to put aside (%(default)s)")
        own.set_defaults(run=add_arguments(own))
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Status 0.

    Raises:
        InputError: for a user's mistake.
    """
    args = parse(argv)
    args.run(args)
    return 0
