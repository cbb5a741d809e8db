"""The data sets that the jobs know by name: how to prepare each, and the settings that were found on it."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from tqdm import tqdm

from torchrec_mtl.data import Schema, Split, StreamedSplit, read_split, stream_split
from torchrec_mtl.data.stream_files import is_uri
from torchrec_mtl.data.table import Table, prepare_table
from torchrec_mtl.data.table.prepare import table_key
from torchrec_mtl.datasets import (
    SyntheticFunnel,
    prepare_ali_ccp,
    prepare_complete_journey,
    prepare_synthetic,
    prepare_taobao,
)
from torchrec_mtl.datasets.complete_journey import sizes
from torchrec_mtl.datasets.complete_journey.prepare import TASKS as COMPLETE_JOURNEY_TASKS
from torchrec_mtl.errors import InputError, check_choice, check_positive_share
from torchrec_mtl.jobs.command_line import Parser, named
from torchrec_mtl.jobs.declarations import is_declaration, load_table
from torchrec_mtl.jobs.settings import PAPER, Settings
from torchrec_mtl.tasks import TaskChain, TaskForest
from torchrec_mtl.training.monitor import progress_bar

SAMPLE = 0.2  # of data sets known by name
READERS = ("auto", "mapped", "stream")
SYNTHETIC_ROWS = {"train": 1_000_000, "valid": 125_000, "test": 250_000}


@dataclass(frozen=True)
class DataSet:
    """A data set as a command line names it; one from your own module is ``package.module:DATA_SET``.

    Args:
        prepare: ``prepare(cache, sample, raw)`` returns the folder of the prepared data, which it makes if need be:
            ``cache`` is a folder to make it in, ``sample`` the share of the rows, ``raw`` the folder of the raw files
            or "".
        settings: settings that hold unless the command line replaces them.
        from_raw: function ``from_raw(raw, output, *, progress, ...)`` behind ``torchrec-mtl prepare``, which turns its
            further arguments into options; None where there are no raw files.
        tasks: funnel of the data, with which arguments of models are checked before a job is submitted; None if it is
            known only once they are prepared.
    """

    prepare: Callable[[Path, float, str], Path]
    settings: Settings = field(default_factory=lambda: PAPER)
    from_raw: Callable[..., Path] | None = None
    tasks: TaskForest | None = None


class StageBars:
    """A progress bar for each stage, in rows, with rows per second and the time left."""

    def __init__(self) -> None:
        self._stage = ""
        self._bar: tqdm[Any] | None = None

    def __call__(self, stage: str, rows: int, share: float) -> None:
        """Moves the bar of ``stage`` to ``rows``, which are about a ``share`` of all its rows."""
        if stage != self._stage:
            self.close()
            self._stage, self._bar = stage, progress_bar(stage, total=rows, unit="rows")
        assert self._bar is not None
        self._bar.total = max(rows, round(rows / max(share, 1e-9)))
        self._bar.update(rows - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _complete_journey(cache: Path, sample: float, raw: str) -> Path:
    return prepare_complete_journey(cache, sample)


def _complete_journey_unread(cache: Path, sample: float, raw: str) -> Path:
    return prepare_complete_journey(cache, sample, unread=True)


def _synthetic(cache: Path, sample: float, raw: str) -> Path:
    num_rows = {split: max(1, round(rows * sample)) for split, rows in SYNTHETIC_ROWS.items()}
    return prepare_synthetic(cache, SyntheticFunnel(), num_rows)


def _with_raw_files(name: str, from_raw: Callable[..., Path], tasks: TaskForest) -> DataSet:
    def prepare(cache: Path, sample: float, raw: str) -> Path:
        if not raw:
            raise InputError(f"`raw` must name the folder of {name}'s raw files")
        digest = hashlib.sha256(str(Path(raw).resolve()).encode()).hexdigest()[:8]
        return from_raw(raw, cache / f"{name}-{float(sample)}-{digest}", sample=sample, progress=StageBars())

    return DataSet(prepare, from_raw=from_raw, tasks=tasks)


COMPLETE_JOURNEY = Settings(sizes.COMMON, sizes.SYSTEMS)

DATASETS: dict[str, DataSet] = {
    "ali_ccp": _with_raw_files("ali_ccp", prepare_ali_ccp, TaskChain(["click", "purchase"])),
    "complete_journey": DataSet(_complete_journey, COMPLETE_JOURNEY, tasks=COMPLETE_JOURNEY_TASKS),
    "complete_journey_unread": DataSet(_complete_journey_unread, COMPLETE_JOURNEY, tasks=COMPLETE_JOURNEY_TASKS),
    "synthetic": DataSet(_synthetic, tasks=SyntheticFunnel().schema.tasks),
    "taobao": _with_raw_files("taobao", prepare_taobao, TaskChain(["click"])),
}
SETTINGS = {"paper": PAPER, "complete_journey": COMPLETE_JOURNEY}


def find_dataset(dataset: str) -> DataSet | Table | None:
    """The data set called ``dataset``; None for a folder or a URI.

    Args:
        dataset: a key of `DATASETS`, a declared table's file (see `load_table`), or ``package.module:NAME`` of either.

    Raises:
        InputError: if it has one of these forms, is not a folder, and names no data set.
    """
    if dataset in DATASETS:
        return DATASETS[dataset]
    if is_declaration(dataset):
        return load_table(dataset)
    if ":" not in dataset or is_uri(dataset) or Path(dataset).exists():
        return None
    found: DataSet | Table = named("data set", dataset, DATASETS, (DataSet, Table))
    return found


def table_directory(table: Table, sample: float = 1.0) -> Path:
    """The folder in the cache for a share of a declared table and the present files of its source."""
    return _cache() / f"{table.name}-{table_key(table)}{'' if sample == 1 else f'-{float(sample)}'}"


def add_sample(options: Parser) -> None:
    """Adds the option ``--sample``, of which `check_sample` checks the value."""
    options.add_argument(
        "--sample",
        type=float,
        help=f"share of the rows of a data set known by name ({SAMPLE}), or of the groups of a declared table (all)",
    )


def check_sample(sample: float | None) -> None:
    """Raises `InputError` if a share is given that is none."""
    if sample is not None:
        check_positive_share(sample=sample)


def is_streamed(dataset: str, reader: str) -> bool:
    """Whether the data set called ``dataset`` is read in place, under the choice ``reader`` of `READERS`.

    Raises:
        InputError: if ``reader`` is another, or "mapped" for a URI.
    """
    check_choice("reader", reader, READERS)
    if reader == "mapped" and is_uri(dataset):
        raise InputError(f"`reader` (='mapped') must be 'stream' or 'auto' for a URI ({dataset.split('?')[0]})")
    return reader == "stream" or (reader == "auto" and is_uri(dataset))


def dataset_directory(
    dataset: str, found: DataSet | Table | None, sample: float | None = None, raw: str = ""
) -> Path | str:
    """The folder of a prepared data set, which is prepared first if need be; or its URI.

    Args:
        dataset: name of the data set, or folder or URI of a prepared one.
        found: what `find_dataset` returns for it.
        sample: share of the rows of a data set known by name, by default `SAMPLE`; or of a declared table, see
            `prepare_table`, by default all.
        raw: folder of the raw files, for "ali_ccp" (under protocol "aitm") and "taobao" (clicks alone).

    Raises:
        InputError: if ``sample`` is not above 0 and at most 1, or ``raw`` is missing.
    """
    if found is None:
        return dataset if is_uri(dataset) else Path(dataset)
    check_sample(sample)
    if isinstance(found, Table):
        share = 1.0 if sample is None else sample
        folder, of_all = table_directory(found, share), "" if share == 1 else f", {share:.0%} of its groups"
        _tell(f"data: {dataset}{of_all}, in {folder}")
        return prepare_table(found, folder, sample=share, progress=StageBars())
    sample = SAMPLE if sample is None else sample
    _tell(f"data: {dataset}, {sample:.0%} of its rows, in {_cache()}")
    return found.prepare(_cache(), sample, raw)


def open_split(data: Path | str, split: str, schema: Schema) -> Split | StreamedSplit:
    """A split of a prepared data set: mapped, or streamed from a URI. Raises `InputError` as `read_split` does."""
    return stream_split(data, split, schema) if is_uri(data) else read_split(data, split, schema)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchrec_mtl"


def _tell(sentence: str) -> None:
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(sentence, flush=True)
