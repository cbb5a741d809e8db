"""The data sets that the jobs know by name, each with the settings that were found on it."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch.distributed as dist

from torchrec_mtl.data import (
    SyntheticFunnel,
    complete_journey_sizes,
    prepare_ali_ccp,
    prepare_complete_journey,
    prepare_synthetic,
    prepare_taobao,
)
from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.named import named
from torchrec_mtl.jobs.prepare import StageBars
from torchrec_mtl.jobs.settings import PAPER, Settings


@dataclass(frozen=True)
class DataSet:
    """A data set as a command line names it; one of your own in a module of yours, ``package.module:DATA_SET``.

    Args:
        prepare: ``prepare(cache, sample, raw)`` gives the folder of the prepared data, made first if need be: ``cache``
            is a folder for it, ``sample`` the share of the rows, ``raw`` the folder of the raw files or "".
        settings: what holds where a command line says nothing else.
    """

    prepare: Callable[[Path, float, str], Path]
    settings: Settings = field(default_factory=lambda: PAPER)


SYNTHETIC_ROWS = {"train": 1_000_000, "valid": 125_000, "test": 250_000}


def _complete_journey(cache: Path, sample: float, raw: str) -> Path:
    return prepare_complete_journey(cache, sample)


def _synthetic(cache: Path, sample: float, raw: str) -> Path:
    num_rows = {split: max(1, round(rows * sample)) for split, rows in SYNTHETIC_ROWS.items()}
    return prepare_synthetic(cache, SyntheticFunnel(), num_rows)


def _from_raw(name: str, prepare: Callable[..., Path]) -> Callable[[Path, float, str], Path]:
    def prepare_once(cache: Path, sample: float, raw: str) -> Path:
        if not raw:
            raise InputError(f"`raw` must name the folder of {name}'s raw files")
        digest = hashlib.sha256(str(Path(raw).resolve()).encode()).hexdigest()[:8]
        return prepare(raw, cache / f"{name}-{float(sample)}-{digest}", sample=sample, progress=StageBars())

    return prepare_once


COMPLETE_JOURNEY = Settings(complete_journey_sizes.COMMON, complete_journey_sizes.SYSTEMS)

DATASETS: dict[str, DataSet] = {
    "ali_ccp": DataSet(_from_raw("ali_ccp", prepare_ali_ccp)),
    "complete_journey": DataSet(_complete_journey, COMPLETE_JOURNEY),
    "synthetic": DataSet(_synthetic),
    "taobao": DataSet(_from_raw("taobao", prepare_taobao)),
}
SETTINGS = {"paper": PAPER} | {name: each.settings for name, each in DATASETS.items() if each.settings is not PAPER}


def find_dataset(dataset: str) -> DataSet | None:
    """What ``dataset`` names: a key of `DATASETS`, or ``package.module:DATA_SET``; None for a folder.

    Raises:
        InputError: if it has the form of the latter, is no folder, and names none.
    """
    if dataset in DATASETS:
        return DATASETS[dataset]
    if ":" not in dataset or Path(dataset).exists():
        return None
    return named("data set", dataset, DATASETS, DataSet)


def dataset_directory(dataset: str, sample: float, raw: str = "") -> Path:
    """The prepared data set's folder, prepared first if need be.

    Args:
        dataset: see `find_dataset`; or the folder of a prepared data set.
        sample: the share of a named data set's rows.
        raw: the folder of the raw files that "ali_ccp" is prepared from, under protocol "aitm", or "taobao", clicks
            alone.

    Raises:
        InputError: if ``sample`` is not above 0 and at most 1, or ``raw`` is missing.
    """
    found = find_dataset(dataset)
    if found is None:
        return Path(dataset)
    if not 0 < sample <= 1:
        raise InputError(f"`sample` (={sample}) must be above 0 and at most 1")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchrec_mtl"
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(f"data: {dataset}, {sample:.0%} of its rows, in {cache}", flush=True)
    return found.prepare(cache, sample, raw)
