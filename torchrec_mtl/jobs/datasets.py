"""The data sets that the jobs know by name: how to prepare each, and the settings that were found on it."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from tqdm import tqdm

from torchrec_mtl.data.stream_files import is_uri
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
from torchrec_mtl.jobs.command_line import named
from torchrec_mtl.jobs.settings import PAPER, Settings
from torchrec_mtl.tasks import TaskChain, TaskForest
from torchrec_mtl.training.monitor import progress_bar

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
    "synthetic": DataSet(_synthetic, tasks=SyntheticFunnel().schema.tasks),
    "taobao": _with_raw_files("taobao", prepare_taobao, TaskChain(["click"])),
}
SETTINGS = {"paper": PAPER} | {name: each.settings for name, each in DATASETS.items() if each.settings is not PAPER}


def find_dataset(dataset: str) -> DataSet | None:
    """The data set called ``dataset``: a key of `DATASETS` or ``package.module:DATA_SET``; None for a folder or a URI.

    Raises:
        InputError: if it has the form of the latter, is not a folder, and names no data set.
    """
    if dataset in DATASETS:
        return DATASETS[dataset]
    if ":" not in dataset or is_uri(dataset) or Path(dataset).exists():
        return None
    return named("data set", dataset, DATASETS, DataSet)


def is_streamed(dataset: str, reader: str) -> bool:
    """Whether the data set called ``dataset`` is read in place, under the choice ``reader`` of `READERS`.

    Raises:
        InputError: if ``reader`` is another, or "mapped" for a URI.
    """
    check_choice("reader", reader, READERS)
    if reader == "mapped" and is_uri(dataset):
        raise InputError(f"`reader` (='mapped') must be 'stream' or 'auto' for a URI ({dataset.split('?')[0]})")
    return reader == "stream" or (reader == "auto" and is_uri(dataset))


def dataset_directory(dataset: str, sample: float, raw: str = "") -> Path:
    """The folder of a prepared data set, which is prepared first if need be.

    Args:
        dataset: name of the data set, see `find_dataset`, or folder of a prepared one.
        sample: share of the rows of a named data set.
        raw: folder of the raw files, for "ali_ccp" (under protocol "aitm") and "taobao" (clicks alone).

    Raises:
        InputError: if ``sample`` is not above 0 and at most 1, ``raw`` is missing, or ``dataset`` is a URI.
    """
    found = find_dataset(dataset)
    if found is None:
        if is_uri(dataset):
            raise InputError(f"`dataset` (={dataset.split('?')[0]!r}) must be a folder: only `train` reads from a URI")
        return Path(dataset)
    check_positive_share(sample=sample)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchrec_mtl"
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(f"data: {dataset}, {sample:.0%} of its rows, in {cache}", flush=True)
    return found.prepare(cache, sample, raw)
